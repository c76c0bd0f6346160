"use strict";
// Draws the charts of the report from the numbers in #sparsefront-data. No number is computed here.
(() => {
  const data = JSON.parse(document.getElementById("sparsefront-data").textContent);
  const arms = new Map(data.arms.map((arm, position) => [arm.name, { ...arm, position }]));
  const levels = data.levels;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {
    responsive: true, displaylogo: false,
    showSendToCloud: false, // plotly.js 7 offers by default to upload the chart
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: "sparsefront" },
  };
  const state = { loss: "initial_loss", level: levels.length ? levels[levels.length - 1].sparsity : null };

  // Plotly reads a small set of tags in its texts: names from a study must not become any of them.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (fraction, digits = 1) => (fraction === null ? "unknown" : `${(100 * fraction).toFixed(digits)}%`);
  const count = (n) => (n === null ? "unknown" : n.toLocaleString("en"));
  const short = (x) => (x === null ? "unknown" : x.toPrecision(4));
  const extent = (values) => values.reduce((a, b) => Math.max(a, b)) / values.reduce((a, b) => Math.min(a, b));
  const translucent = (colour, alpha) =>
    `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16)).join(",")},${alpha})`;
  const levelText = (sparsity) => {
    const level = levels.find((l) => l.sparsity === sparsity);
    return level ? level.text : sparsity === 0 ? "unpruned" : percent(sparsity);
  };

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

  const layout = (colours, height, more) => ({
    height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    font: { color: colours.ink, size: 13, family: 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif' },
    margin: { l: 64, r: 28, t: 16, b: 56 },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemsizing: "constant" },
    hoverlabel: { align: "left" }, modebar: { bgcolor: "rgba(0,0,0,0)", color: colours.muted, activecolor: colours.ink },
    ...more,
  });

  function accuracy(colours) {
    const shown = data.arms.filter((arm) => data.accuracy.some((row) => row.arm === arm.name && row.sparsity > 0));
    const traces = [];
    const shapes = [];
    const edges = [-0.5, Math.max(levels.length, 1) - 0.5];
    for (const row of data.accuracy.filter((r) => r.sparsity === 0)) {
      const arm = arms.get(row.arm);
      if (row.low !== null) {
        shapes.push({ type: "rect", layer: "below", x0: edges[0], x1: edges[1], y0: row.low, y1: row.high,
          line: { width: 0 }, fillcolor: translucent(arm.colour, 0.22) });
      }
      traces.push({ type: "scatter", mode: "lines", name: plain(arm.name), x: edges, y: [row.mean, row.mean],
        line: { color: arm.colour, width: 2, dash: "dash" }, hoverinfo: "text", text: [hover(row), hover(row)] });
    }
    for (let l = 1; l < levels.length; l += 1) {
      shapes.push({ type: "line", layer: "below", x0: l - 0.5, x1: l - 0.5, yref: "paper", y0: 0, y1: 1,
        line: { color: colours.grid, width: 1 } });
    }
    const step = shown.length > 1 ? Math.min(0.11, 0.6 / (shown.length - 1)) : 0;
    shown.forEach((arm, i) => {
      const rows = levels.map((level) => data.accuracy.find((r) => r.arm === arm.name && r.sparsity === level.sparsity));
      const present = rows.map((row, l) => [row, l]).filter(([row]) => row);
      traces.push({
        type: "scatter", mode: "lines+markers", name: plain(arm.name),
        x: present.map(([, l]) => l + step * (i - (shown.length - 1) / 2)), y: present.map(([row]) => row.mean),
        error_y: { type: "data", symmetric: false, thickness: 1.6, width: 4, color: arm.colour,
          array: present.map(([row]) => (row.high === null ? 0 : row.high - row.mean)),
          arrayminus: present.map(([row]) => (row.low === null ? 0 : row.mean - row.low)) },
        line: { color: translucent(arm.colour, 0.45), width: 1.5, dash: arm.dash },
        marker: { color: arm.colour, symbol: arm.symbol, size: 9, line: { color: colours.surface, width: 1 } },
        hoverinfo: "text", text: present.map(([row]) => hover(row)),
      });
    });
    return { traces, layout: layout(colours, 440, {
      shapes,
      xaxis: axis(colours, { title: "sparsity realised at each level (levels evenly spaced)", showgrid: false, range: edges,
        tickvals: levels.map((_, l) => l), ticktext: levels.map((level) => level.tick) }),
      yaxis: axis(colours, { title: "test accuracy", tickformat: ".2~%" }),
    }) };
  }

  function hover(row) {
    const range = row.low === null ? "one replicate: no interval" : `95% interval ${percent(row.low, 2)} to ${percent(row.high, 2)}`;
    return `<b>${plain(row.arm)}</b>, ${levelText(row.sparsity)}<br>test accuracy ${percent(row.mean, 2)}<br>${range}` +
      `<br>${row.n_candidates} candidates in ${row.n_replicates} replicates` +
      `<br>realised sparsity: nodes ${percent(row.node_sparsity, 2)}, weights ${percent(row.weight_sparsity, 2)}`;
  }

  function describe(points, i) {
    return `<b>${plain(points.arm[i])}</b>, ${levelText(points.sparsity[i])}, replicate ${points.replicate[i]}` +
      `<br>${plain(points.candidate[i])}` +
      `<br>validation error ${percent(points.val_error[i], 2)}, test error ${percent(points.test_error[i], 2)}` +
      `<br>realised sparsity: nodes ${percent(points.node_sparsity[i], 2)}, weights ${percent(points.weight_sparsity[i], 2)}` +
      `<br>${count(points.n_params[i])} parameters, ${count(points.macs[i])} MACs` +
      `<br>loss: initial ${short(points.initial_loss[i])}, scale-free ${short(points.scalefree_loss[i])}, final ${short(points.val_loss[i])}`;
  }

  // Networks of one level have one size: dominated ones step aside by arm, by a fixed share of the axis.
  const aside = (arm, range) => Math.exp(0.011 * Math.max(range, 0.3) * (arms.get(arm.name).position - (arms.size - 1) / 2));

  function front(colours) {
    const points = data.points;
    const indices = [...points.candidate.keys()];
    const traces = [];
    const panels = [["n_params", "x", "y"], ["macs", "x2", "y2"]];
    for (const [column, xaxis, yaxis] of panels) {
      const sizes = points[column].filter((v) => v > 0);
      const decades = sizes.length ? Math.log(extent(sizes)) : 0;
      const members = indices.filter((i) => points.on_front[i] && points[column][i] > 0)
        .sort((a, b) => points[column][a] - points[column][b] || points.val_error[a] - points.val_error[b]);
      let best = Infinity;
      const stairs = members.filter((i) => points.val_error[i] < best && ((best = points.val_error[i]), true));
      traces.push({ type: "scatter", mode: "lines", xaxis, yaxis, showlegend: false, hoverinfo: "skip",
        x: stairs.map((i) => points[column][i]), y: stairs.map((i) => points.val_error[i]),
        line: { shape: "hv", color: colours.muted, width: 1.2 } });
      for (const arm of data.arms) {
        for (const onFront of [false, true]) {
          const own = indices.filter((i) => points.arm[i] === arm.name && points.on_front[i] === onFront && points[column][i] > 0);
          if (!own.length) continue;
          traces.push({
            type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, xaxis, yaxis,
            showlegend: false, x: own.map((i) => points[column][i] * (onFront ? 1 : aside(arm, decades))), y: own.map((i) => points.val_error[i]),
            marker: { color: arm.colour, symbol: arm.symbol, size: onFront ? 10 : 5, opacity: onFront ? 1 : 0.38,
              line: { color: onFront ? colours.ink : arm.colour, width: onFront ? 1.2 : 0 } },
            hoverinfo: "text", text: own.map((i) => describe(points, i)),
          });
        }
      }
    }
    for (const arm of data.arms.filter((a) => points.arm.includes(a.name))) {
      traces.push({ type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, x: [null], y: [null],
        marker: { color: arm.colour, symbol: arm.symbol, size: 9 } });
    }
    const log = (title, column) => {
      const values = points[column].filter((v) => v > 0);
      const wide = values.length && extent(values) > 500;
      return axis(colours, { title, type: "log", exponentformat: "SI", dtick: wide ? 1 : "D2", minexponent: 3 });
    };
    return { traces, layout: layout(colours, 470, {
      grid: { rows: 1, columns: 2, pattern: "independent", xgap: 0.12 },
      xaxis: log("remaining parameters (log scale)", "n_params"), xaxis2: log("MACs per example (log scale)", "macs"),
      yaxis: axis(colours, { title: "validation error", tickformat: ".2~%" }),
      yaxis2: axis(colours, { tickformat: ".2~%", matches: "y" }),
    }) };
  }

  function losses(colours, width) {
    const points = data.points;
    const column = state.loss;
    const shown = levels.filter((level) => points.sparsity.includes(level.sparsity));
    const columns = Math.max(1, Math.min(shown.length, width < 640 ? 1 : shown.length === 4 ? 2 : 3));
    const rows = Math.max(1, Math.ceil(shown.length / columns));
    const traces = [];
    const annotations = [];
    const axes = {};
    const gapX = 0.07;
    const gapY = 0.3 / rows;
    const panelWidth = (1 - gapX * (columns - 1)) / columns;
    const panelHeight = (1 - gapY * (rows - 1)) / rows;
    const named = new Set();
    shown.forEach((level, l) => {
      const suffix = l === 0 ? "" : String(l + 1);
      const [c, r] = [l % columns, Math.floor(l / columns)];
      const x = [c * (panelWidth + gapX), c * (panelWidth + gapX) + panelWidth];
      const y = [1 - r * (panelHeight + gapY) - panelHeight, 1 - r * (panelHeight + gapY)];
      axes[`xaxis${suffix}`] = axis(colours, { domain: x, anchor: `y${suffix}`, nticks: 6,
        title: r === rows - 1 || l + columns >= shown.length ? (column === "initial_loss" ? "initial loss (nats)" : "scale-free initial loss (nats)") : "" });
      axes[`yaxis${suffix}`] = axis(colours, { domain: y, anchor: `x${suffix}`, nticks: 6, title: c === 0 ? "final validation loss (nats)" : "" });
      const own = [...points.candidate.keys()].filter((i) =>
        points.sparsity[i] === level.sparsity && points.drawn[i] && points[column][i] !== null && points.val_loss[i] !== null);
      for (const arm of data.arms) {
        const mine = own.filter((i) => points.arm[i] === arm.name);
        if (!mine.length) continue;
        traces.push({
          type: "scatter", mode: "markers", name: plain(arm.name), legendgroup: arm.name, showlegend: !named.has(arm.name),
          xaxis: `x${suffix}`, yaxis: `y${suffix}`, x: mine.map((i) => points[column][i]), y: mine.map((i) => points.val_loss[i]),
          marker: { color: arm.colour, symbol: arm.symbol, size: 7, opacity: 0.7 },
          hoverinfo: "text", text: mine.map((i) => describe(points, i)),
        });
        named.add(arm.name);
      }
      const found = data.correlation_texts.find((t) => t.sparsity === level.sparsity && t.loss === column);
      annotations.push({ xref: "paper", yref: "paper", x: x[0], y: y[1], xanchor: "left", yanchor: "bottom", showarrow: false,
        align: "left", text: `<b>${plain(level.text)}</b><br>${found ? plain(found.text) : "rank correlation unknown"}`, font: { size: 12.5 } });
    });
    const height = 110 + rows * 300;
    return { traces, layout: layout(colours, height, {
      ...axes, annotations, margin: { l: 64, r: 16, t: 84, b: 56 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1 + 44 / (height - 140), yanchor: "bottom" },
    }) };
  }

  function curves(colours) {
    const traces = [];
    const rows = data.curves.filter((row) => row.sparsity === state.level || row.sparsity === 0);
    for (const row of rows) {
      const arm = arms.get(row.arm);
      if (row.low) {
        traces.push({ type: "scatter", mode: "lines", legendgroup: arm.name, showlegend: false, hoverinfo: "skip",
          x: row.step.concat(row.step.slice().reverse()), y: row.high.concat(row.low.slice().reverse()),
          fill: "toself", fillcolor: translucent(arm.colour, 0.12), line: { width: 0 } });
      }
    }
    for (const row of rows) {
      const arm = arms.get(row.arm);
      traces.push({
        type: "scatter", mode: row.step.length > 1 ? "lines" : "markers", name: plain(arm.name), legendgroup: arm.name,
        x: row.step, y: row.val_error, line: { color: arm.colour, width: 2.2, dash: arm.dash },
        marker: { color: arm.colour, symbol: arm.symbol, size: 9 }, hoverinfo: "text",
        text: row.step.map((step, i) => `<b>${plain(arm.name)}</b>, ${levelText(row.sparsity)}<br>step ${count(step)}: validation error ${percent(row.val_error[i], 2)}` +
          `<br>mean of ${row.n_replicates[i]} replicates`),
      });
    }
    return { traces, layout: layout(colours, 440, {
      xaxis: axis(colours, { title: "optimiser steps", rangemode: "tozero" }),
      yaxis: axis(colours, { title: "validation error", tickformat: ".2~%" }),
    }) };
  }

  const charts = { accuracy, front, losses, curves };

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

  for (const input of document.querySelectorAll('input[name="loss"]')) {
    input.addEventListener("change", () => { state.loss = input.value; draw("losses"); });
  }
  const choice = document.getElementById("curve-level");
  if (choice) {
    choice.selectedIndex = choice.options.length - 1;
    choice.addEventListener("change", () => { state.level = levels[choice.selectedIndex].sparsity; draw("curves"); });
  }
  dark.addEventListener("change", () => drawAll());
  window.addEventListener("beforeprint", () => drawAll(true));
  window.addEventListener("afterprint", () => drawAll());
  drawAll();
})();
