// What the page needs of Apache ECharts, and no more: page.js draws with it.
import * as echarts from "echarts/core";
import { BarChart, CustomChart, LineChart } from "echarts/charts";
import { GridComponent } from "echarts/components";
import { LabelLayout } from "echarts/features";
import { SVGRenderer } from "echarts/renderers";

echarts.use([BarChart, CustomChart, LineChart, GridComponent, LabelLayout, SVGRenderer]);

globalThis.echarts = { init: echarts.init };
