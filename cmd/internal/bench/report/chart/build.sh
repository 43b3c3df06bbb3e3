#!/bin/bash
# Bundles what the page needs of Apache ECharts into echarts.min.js.gz, from npm, in the versions
# that package-lock.json pins, and puts the licences of all that is bundled beside it:
#
#   build.sh          write them
#   build.sh --check  fail unless those that are committed are what this makes
#
# Needs npm. To update: change the versions in package.json, run `npm install --package-lock-only
# --ignore-scripts` here, then build.sh, then the tests of the package, and look at a page.
set -euo pipefail
cd "$(dirname "$0")" || exit 1
here=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp package.json package-lock.json echarts.js "$work"
cd "$work"
npm ci --ignore-scripts --no-audit --no-fund --silent

version() { node -p "require('./node_modules/$1/package.json').version"; }
banner="/*! Apache ECharts $(version echarts) (Apache-2.0, see NOTICE at its end), zrender $(version zrender) (BSD-3-Clause), tslib $(version tslib) (0BSD) */"
node_modules/.bin/esbuild echarts.js --bundle --minify --format=iife --target=es2020 --charset=utf8 \
	--legal-comments=eof --banner:js="$banner" --log-level=warning --outfile=echarts.min.js
{
	echo "/*!"
	cat node_modules/echarts/NOTICE
	echo
	echo "*/"
} >>echarts.min.js

{
	echo "What echarts.min.js.gz is made of, and the terms of each part."
	for part in echarts/LICENSE echarts/NOTICE echarts/licenses/LICENSE-d3 zrender/LICENSE tslib/LICENSE.txt; do
		printf '\n======== %s ========\n\n' "$part"
		cat "node_modules/$part"
	done
} | sed -e 's/\r$//' -e 's/[ \t]*$//' >LICENSES

if [ "${1:-}" = --check ]; then
	# Compressors differ in what they write, not in what they mean.
	if ! gzip -dc "$here/echarts.min.js.gz" | cmp - echarts.min.js || ! cmp "$here/LICENSES" LICENSES; then
		echo "the bundled charts differ from their source: run $0" >&2
		exit 1
	fi
	echo "the bundled charts match their source"
	exit 0
fi
gzip -9n <echarts.min.js >"$here/echarts.min.js.gz"
cp LICENSES "$here/LICENSES"
sha256sum <echarts.min.js | cut -d' ' -f1 >"$here/echarts.min.js.sha256"
