"use strict";
// What the charts of all reports have in common; it stands before the script that draws those of one.
const sparsefront = (() => {
  const data = JSON.parse(document.getElementById("sparsefront-data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true, displaylogo: false,
    showSendToCloud: false, // plotly.js 7 offers by default to upload the chart
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: "sparsefront" },
  };

  // Plotly reads a small set of tags in its texts: names from a study must not become any of them.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (fraction, digits = 2) => (fraction === null ? "unknown" : `${(100 * fraction).toFixed(digits)}%`);
  const extent = (values) => values.reduce((a, b) => Math.max(a, b)) / values.reduce((a, b) => Math.min(a, b));
  const translucent = (colour, alpha) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).join(",")},${alpha})`;

  function theme(printing) {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    if (printing) return { ink: "#000000", muted: "#444444", grid: "#dddddd", surface: "#ffffff" };
    return { ink: read("--ink"), muted: read("--muted"), grid: read("--grid"), surface: read("--surface") };
  }

  const axis = (colours, more) => ({
    gridcolor: colours.grid, linecolor: colours.muted, tickcolor: colours.muted, zeroline: false, showline: true,
    ticks: "outside", automargin: true, ...more, title: { text: more.title || "", standoff: 10 },
  });

  const logAxis = (colours, values, more) => {
    const known = values.filter((v) => v > 0);
    if (!known.length) return axis(colours, { type: "log", ...more });
    const low = known.reduce((a, b) => Math.min(a, b));
    return axis(colours, { type: "log", ...logTicks(low, low * extent(known)), ...more });
  };

  // Ticks at 1, 2 and 5 of a decade, or at decades only; a decade to either side for who zooms out. Plotly's own are
  // written by their leading digit between decades ("2", "5", "1k").
  function logTicks(low, high) {
    const digits = high / low > 500 ? [1] : [1, 2, 5];
    const first = Math.floor(Math.log10(low)) - 1;
    const last = Math.ceil(Math.log10(high)) + 1;
    const ticks = [];
    for (let exponent = first; exponent <= last; exponent += 1) {
      for (const digit of digits) ticks.push([digit, exponent]);
    }
    return { tickvals: ticks.map(([digit, exponent]) => Number(`${digit}e${exponent}`)),
      ticktext: ticks.map(([digit, exponent]) => tickText(digit, exponent, low)) };
  }

  // SI prefixes for counts, powers of ten where an axis goes below a thousandth: the same form all along it.
  function tickText(digit, exponent, low) {
    if (low < 1e-3) return `${digit === 1 ? "" : `${digit}·`}10<sup>${exponent}</sup>`;
    const thousands = Math.max(0, Math.min(5, Math.floor(exponent / 3)));
    return `${Number(`${digit}e${exponent - 3 * thousands}`)}${["", "k", "M", "G", "T", "P"][thousands]}`;
  }

  const layout = (colours, height, more) => ({
    height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { color: colours.ink, size: 13, family: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif' },
    margin: { l: 64, r: 28, t: 16, b: 56 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemsizing: "constant" },
    hoverlabel: { align: "left" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.ink },
    ...more,
  });

  // Large and outlined on the front, small and faint elsewhere.
  const marks = (arm, onFront, colours) => ({
    color: arm.colour, symbol: arm.symbol, size: onFront ? 10 : 5, opacity: onFront ? 1 : 0.38,
    line: { color: onFront ? colours.ink : arm.colour, width: onFront ? 1.2 : 0 },
  });

  // An arm's entry in the legend, where its markers are drawn in several traces.
  const legendTraces = (arms) => arms.map((arm) => ({
    type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, x: [null], y: [null],
    marker: { color: arm.colour, symbol: arm.symbol, size: 9 } }));

  // Where n panels go, in rows from the top: the axes' suffix and domains, and what lies at the left and at the foot.
  const panels = (n, columns, gapX) => {
    const rows = Math.max(1, Math.ceil(n / columns));
    const gapY = 0.3 / rows;
    const panelWidth = (1 - gapX * (columns - 1)) / columns;
    const panelHeight = (1 - gapY * (rows - 1)) / rows;
    const place = (i) => {
      const [c, r] = [i % columns, Math.floor(i / columns)];
      const high = 1 - r * (panelHeight + gapY);
      return { suffix: i === 0 ? "" : String(i + 1), x: [c * (panelWidth + gapX), c * (panelWidth + gapX) + panelWidth],
        y: [high - panelHeight, high], isLeft: c === 0, isFoot: r === rows - 1 || i + columns >= n };
    };
    return { rows, place };
  };

  // Draws charts {name: (colours, width) => ({ traces, layout })} now and when colours change; gives draw(name).
  function show(charts) {
    async function draw(name, printing = false) {
      const place = document.getElementById(`chart-${name}`);
      if (!place) return;
      const made = charts[name](theme(printing), place.clientWidth);
      await Plotly.react(place, made.traces, made.layout, config);
    }

    async function drawAll(printing = false) {
      for (const name of Object.keys(charts)) await draw(name, printing);
      document.documentElement.dataset.rendered = Object.keys(charts).filter((n) => document.querySelector(`#chart-${n} .main-svg`)).join(" ");
    }

    dark.addEventListener("change", () => drawAll());
    window.addEventListener("beforeprint", () => drawAll(true));
    window.addEventListener("afterprint", () => drawAll());
    drawAll();
    return draw;
  }

  return { data, plain, percent, extent, translucent, axis, logAxis, layout, marks, legendTraces, panels, show, tickText };
})();
