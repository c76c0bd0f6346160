"use strict";
// Draws the charts of the report from the numbers in #sparsefront-data. No number is computed here.
(() => {
  const { data, plain, percent, extent, translucent, axis, logAxis, layout, marks, legendTraces, panels, show } = sparsefront;
  const arms = new Map(data.arms.map((arm, position) => [arm.name, { ...arm, position }]));
  const levels = data.levels;
  const state = { loss: "initial_loss", level: levels.length ? levels[levels.length - 1].sparsity : null };

  // Results are accuracies, or decibels of restored images, whose errors are mean squares and whose losses mean distances.
  const isPsnr = data.metric === "psnr";
  const resultName = isPsnr ? "test PSNR of the worst degradation" : "test accuracy";
  const result = (v) => (isPsnr ? `${v.toFixed(2)} dB` : percent(v, 2));
  const error = (v) => (isPsnr && v !== null ? v.toPrecision(4) : percent(v, 2));
  const errorFormat = isPsnr ? ".3~g" : ".2~%";
  const lossUnit = isPsnr ? "intensity" : "nats";

  const count = (n) => (n === null ? "unknown" : n.toLocaleString("en"));
  const short = (x) => (x === null ? "unknown" : x.toPrecision(4));
  const levelText = (sparsity) => {
    const level = levels.find((l) => l.sparsity === sparsity);
    return level ? level.text : sparsity === 0 ? "unpruned" : percent(sparsity, 1);
  };

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
      yaxis: axis(colours, { title: isPsnr ? `${resultName} (dB)` : resultName, tickformat: isPsnr ? ".3~f" : ".2~%" }),
    }) };
  }

  function hover(row) {
    const range = row.low === null ? "one replicate: no interval" : `95% interval ${result(row.low)} to ${result(row.high)}`;
    return `<b>${plain(row.arm)}</b>, ${levelText(row.sparsity)}<br>${resultName} ${result(row.mean)}<br>${range}` +
      `<br>${row.n_candidates} candidates in ${row.n_replicates} replicates` +
      `<br>realised sparsity: nodes ${percent(row.node_sparsity, 2)}, weights ${percent(row.weight_sparsity, 2)}`;
  }

  function describe(points, i) {
    return `<b>${plain(points.arm[i])}</b>, ${levelText(points.sparsity[i])}, replicate ${points.replicate[i]}` +
      `<br>${plain(points.candidate[i])}` +
      `<br>validation error ${error(points.val_error[i])}, test error ${error(points.test_error[i])}` +
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
            marker: marks(arm, onFront, colours),
            hoverinfo: "text", text: own.map((i) => describe(points, i)),
          });
        }
      }
    }
    traces.push(...legendTraces(data.arms.filter((arm) => points.arm.includes(arm.name))));
    return { traces, layout: layout(colours, 470, {
      grid: { rows: 1, columns: 2, pattern: "independent", xgap: 0.12 },
      xaxis: logAxis(colours, points.n_params, { title: "remaining parameters (log scale)" }),
      xaxis2: logAxis(colours, points.macs, { title: "MACs per example (log scale)" }),
      yaxis: axis(colours, { title: "validation error", tickformat: errorFormat }),
      yaxis2: axis(colours, { tickformat: errorFormat, matches: "y" }),
    }) };
  }

  function losses(colours, width) {
    const points = data.points;
    const column = state.loss;
    const shown = levels.filter((level) => points.sparsity.includes(level.sparsity));
    const columns = Math.max(1, Math.min(shown.length, width < 640 ? 1 : shown.length === 4 ? 2 : 3));
    const { rows, place } = panels(shown.length, columns, 0.07);
    const traces = [];
    const annotations = [];
    const axes = {};
    const named = new Set();
    shown.forEach((level, l) => {
      const { suffix, x, y, isLeft, isFoot } = place(l);
      axes[`xaxis${suffix}`] = axis(colours, { domain: x, anchor: `y${suffix}`, nticks: 6,
        title: isFoot ? (column === "initial_loss" ? `initial loss (${lossUnit})` : `scale-free initial loss (${lossUnit})`) : "" });
      axes[`yaxis${suffix}`] = axis(colours, { domain: y, anchor: `x${suffix}`, nticks: 6, title: isLeft ? `final validation loss (${lossUnit})` : "" });
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
        text: row.step.map((step, i) => `<b>${plain(arm.name)}</b>, ${levelText(row.sparsity)}<br>step ${count(step)}: validation error ${error(row.val_error[i])}` +
          `<br>mean of ${row.n_replicates[i]} replicates`),
      });
    }
    return { traces, layout: layout(colours, 440, {
      xaxis: axis(colours, { title: "optimiser steps", rangemode: "tozero" }),
      yaxis: axis(colours, { title: "validation error", tickformat: errorFormat }),
    }) };
  }

  function silence(colours) {
    const rows = data.diagnostics.rows.filter((row) => row.dynamic_dead_fraction !== null);
    const edges = [-0.5, Math.max(levels.length, 1) - 0.5];
    const traces = data.arms.map((arm) => {
      const own = rows.filter((row) => row.arm === arm.name);
      const parent = own.filter((row) => row.sparsity === 0);
      const shown = parent.length ? [...parent, ...parent] : own.filter((row) => levels.some((l) => l.sparsity === row.sparsity));
      return {
        type: "scatter", mode: parent.length ? "lines" : "lines+markers", name: plain(arm.name),
        x: parent.length ? edges : shown.map((row) => levels.findIndex((l) => l.sparsity === row.sparsity)),
        y: shown.map((row) => row.dynamic_dead_fraction),
        line: { color: arm.colour, width: 2, dash: parent.length ? "dash" : arm.dash },
        marker: { color: arm.colour, symbol: arm.symbol, size: 8 }, hoverinfo: "text",
        text: shown.map((row) => `<b>${plain(row.arm)}</b>, ${levelText(row.sparsity)}` +
          `<br>silent activations ${percent(row.dynamic_dead_fraction, 2)}` +
          `<br>silent by the mask ${row.static_dead_fraction === null ? "unknown" : percent(row.static_dead_fraction, 2)}`),
      };
    }).filter((trace) => trace.x.length && trace.y.length);
    return { traces, layout: layout(colours, 380, {
      xaxis: axis(colours, { title: "sparsity realised at each level (levels evenly spaced)", showgrid: false, range: edges,
        tickvals: levels.map((_, l) => l), ticktext: levels.map((level) => level.tick) }),
      yaxis: axis(colours, { title: "silent activations", tickformat: ".2~%" }),
    }) };
  }

  const draw = show({ accuracy, front, losses, curves, silence });
  for (const input of document.querySelectorAll('input[name="loss"]')) {
    input.addEventListener("change", () => { state.loss = input.value; draw("losses"); });
  }
  const choice = document.getElementById("curve-level");
  if (choice) {
    choice.selectedIndex = choice.options.length - 1;
    choice.addEventListener("change", () => { state.level = levels[choice.selectedIndex].sparsity; draw("curves"); });
  }
})();
