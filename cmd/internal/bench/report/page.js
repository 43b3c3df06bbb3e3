"use strict";
// Draws the charts of the page with Apache ECharts. Colours are CSS variables, which only its
// SVG renderer passes on, and only where nothing is highlighted under the pointer: so the style
// sheet alone decides between light, dark and print.
(function () {
	let printing = false;
	const charts = JSON.parse(document.getElementById("charts").textContent);
	const font = getComputedStyle(document.body).fontFamily;
	const ink = "var(--ink)", muted = "var(--muted)", line = "var(--line)", faint = "var(--faint)";
	const text = (color) => ({ color, fontFamily: font, fontSize: 12 });

	// A figure with at most three digits, as the tables have it.
	function number(v) {
		const r = Number(v.toPrecision(3));
		return Math.abs(r) >= 1000 ? r.toLocaleString("en") : String(r);
	}

	// The figure of an axis in the chart's own unit, or in the one that fits.
	function figure(chart, v) {
		if (v === 0) return "0";
		if (chart.scales.length === 1) return number(v / chart.scales[0].factor);
		const s = chart.scales.findLast((s) => Math.abs(v) >= s.factor * 0.9999) || chart.scales[0];
		return number(v / s.factor) + " " + s.name;
	}

	// The line from the lowest to the highest sample, with its ends.
	function spread(from, to, horizontal, color, lineWidth) {
		const cap = 4;
		const bar = (x1, y1, x2, y2) => ({
			type: "line", shape: { x1, y1, x2, y2 }, silent: true, style: { stroke: color, lineWidth },
		});
		const [x1, y1] = from, [x2, y2] = to;
		return horizontal
			? [bar(x1, y1, x2, y2), bar(x1, y1 - cap, x1, y1 + cap), bar(x2, y2 - cap, x2, y2 + cap)]
			: [bar(x1, y1, x2, y2), bar(x1 - cap, y1, x1 + cap, y1), bar(x2 - cap, y2, x2 + cap, y2)];
	}

	const axis = (more) => Object.assign({
		axisLine: { show: false }, axisTick: { show: false },
		splitLine: { lineStyle: { color: faint } }, axisLabel: text(muted),
	}, more);

	function bars(chart, width) {
		const rows = chart.series;
		return {
			height: rows.length * (printing ? 18 : 30) + 34,
			option: {
				grid: { left: 88, right: 64, top: 2, bottom: 32, outerBoundsMode: "none" },
				xAxis: axis({
					type: "value", splitLine: { lineStyle: { color: faint }, showMaxLine: false }, min: (r) => Math.min(0, r.min), splitNumber: width < 480 ? 3 : 5,
					max: (r) => Math.max(r.max, ...rows.map((s) => s.points[0].high)) || 1,
					axisLabel: Object.assign(text(muted), {
						formatter: (v) => figure(chart, v), hideOverlap: true, showMaxLabel: false,
					}),
				}),
				yAxis: axis({
					type: "category", inverse: true, data: rows.map((s) => s.peer),
					axisLabel: Object.assign(text(ink), {
						interval: 0, width: 78, overflow: "truncate",
						formatter: (peer) => peer.startsWith("ebnet") ? "{ours|" + peer + "}" : peer,
						rich: { ours: Object.assign(text(ink), { fontWeight: 600 }) },
					}),
				}),
				series: [{
					type: "bar", barWidth: printing ? 12 : 18, silent: true,
					data: rows.map((s) => ({ value: s.points[0].median, itemStyle: { color: s.color } })),
				}, {
					type: "custom", silent: true, z: 3,
					data: rows.map((s, i) => [s.points[0].high, i]),
					renderItem(params, api) {
						const p = rows[params.dataIndex].points[0], i = params.dataIndex;
						const from = api.coord([p.low, i]), to = api.coord([p.high, i]);
						return {
							type: "group", children: [
								...spread(from, to, true, "var(--paper)", 3.5), // seen on any colour
								...spread(from, to, true, ink, 1.5),
								{
									type: "text", x: to[0] + 9, y: to[1], silent: true,
									style: { text: p.label, fill: ink, font: "12px " + font, verticalAlign: "middle" },
								},
							],
						};
					},
				}],
			},
		};
	}

	function curve(chart, width) {
		const positive = chart.sizes[0] > 0;
		const labels = chart.sizeLabels;
		const place = (at) => positive ? at : chart.sizes.indexOf(at);
		const values = chart.series.flatMap((s) => s.points.flatMap((p) => [p.low, p.high]));
		const low = Math.min(...values), high = Math.max(...values);
		const logarithmic = low > 0 && high / low > 30;
		// Sizes in memory are read in powers of two.
		const base = chart.scales[0].name === "B" ? 16 : 10;
		const power = (v, round) => base ** round(Math.log(v) / Math.log(base));
		const size = (at) => labels[chart.sizes.indexOf(at)];
		return {
			height: printing ? 230 : 310,
			option: {
				grid: { left: 62, right: 96, top: 14, bottom: 48, outerBoundsMode: "none" },
				xAxis: axis({
					type: positive ? "log" : "category", data: positive ? undefined : labels,
					min: positive ? chart.sizes[0] : undefined, max: positive ? chart.sizes.at(-1) : undefined,
					name: chart.axis, nameLocation: "middle", nameGap: 28, nameTextStyle: text(muted),
					axisLine: { show: true, onZero: false, lineStyle: { color: line } },
					axisTick: { show: true, lineStyle: { color: line }, customValues: positive ? chart.sizes : undefined },
					splitLine: { show: false },
					axisLabel: Object.assign(text(muted), {
						customValues: positive ? chart.sizes : undefined, hideOverlap: true,
						formatter: (v) => positive ? size(v) || number(v) : v,
					}),
				}),
				yAxis: axis({
					type: logarithmic ? "log" : "value", logBase: base,
					min: logarithmic ? power(low, Math.floor) : Math.min(0, low),
					max: logarithmic ? power(high, Math.ceil) : undefined,
					axisLabel: Object.assign(text(muted), { formatter: (v) => figure(chart, v) }),
				}),
				series: chart.series.flatMap((s) => [{
					type: "line", silent: true, z: 3, symbol: s.symbol, symbolSize: 8, showAllSymbol: true,
					data: s.points.map((p) => [place(p.at), p.median]),
					itemStyle: { color: s.color, borderColor: s.color },
					lineStyle: { color: s.color, width: s.ours ? 2.5 : 1.75, type: s.dash },
					endLabel: Object.assign(text(ink), {
						show: true, formatter: s.peer, distance: 8, lineHeight: 14, fontWeight: s.ours ? 600 : 400,
						width: 82, overflow: "truncate",
					}),
					labelLayout: { moveOverlap: "shiftY" },
				}, {
					type: "custom", silent: true, z: 2,
					data: s.points.map((p) => [place(p.at), p.median]),
					renderItem(params, api) {
						const p = s.points[params.dataIndex];
						return {
							type: "group",
							children: spread(api.coord([place(p.at), p.low]), api.coord([place(p.at), p.high]), false, s.color, 1.25),
						};
					},
				}]),
			},
		};
	}

	// Draws one chart as wide as its box, or as a page is.
	function draw(box, width) {
		const chart = charts[Number(box.dataset.chart)];
		if (box.drawn && box.drawn.getWidth() === width && box.printed === printing) return;
		box.printed = printing;
		const { height, option } = (chart.axis ? curve : bars)(chart, width);
		if (box.drawn) {
			box.drawn.resize({ width, height });
		} else {
			box.drawn = echarts.init(box, null, { renderer: "svg", width, height });
		}
		box.drawn.setOption(Object.assign({ animation: false, textStyle: { fontFamily: font } }, option), true);
		const svg = box.querySelector("svg");
		svg.setAttribute("viewBox", "0 0 " + width + " " + height);
		svg.setAttribute("aria-hidden", "true"); // the box has the text alternative
	}

	const boxes = [...document.querySelectorAll(".chart")];
	function drawAll(width) {
		for (const box of boxes) {
			try {
				draw(box, width || Math.floor(box.clientWidth));
			} catch (e) {
				box.textContent = "This chart could not be drawn; its figures are in the table.";
				console.error(e);
			}
		}
	}
	drawAll();
	new ResizeObserver(() => printing || drawAll()).observe(document.querySelector("main"));
	addEventListener("beforeprint", () => { printing = true; drawAll(520); });
	addEventListener("afterprint", () => { printing = false; drawAll(); });
})();
