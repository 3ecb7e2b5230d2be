// Figures: what is shown, drawn once more as SVG, which papers and slides take. Shapes and words, and the picture once.

const EDGE = 360, THUMB = 150, LINE = 20; // units of the drawing: a picture's width, a thumbnail's, a line of text
const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const rounded = (number) => Number(number.toFixed(2));

function rect([x, y, w, h], fill, rest = "") {
  return `<rect x="${rounded(x)}" y="${rounded(y)}" width="${rounded(w)}" height="${rounded(h)}" fill="${fill}" ${rest}/>`;
}

function words(x, y, text, { size = 12, fill = colourOf("--ink"), weight: bold = 400, anchor = "start" } = {}) {
  return `<text x="${rounded(x)}" y="${rounded(y)}" font-size="${size}" fill="${fill}" font-weight="${bold}" text-anchor="${anchor}">${escaped(text)}</text>`;
}

function dashed(box) {
  const at = inset(box, 1.5), line = 'stroke-width="1.5"';
  return rect(at, "none", `stroke="#000000" ${line}`) + rect(at, "none", `stroke="#ffffff" ${line} stroke-dasharray="3 3" class="sink"`);
}

function widthOf(text, size, bold) {
  const context = element("canvas").getContext("2d");
  context.font = `${bold} ${size}px system-ui, sans-serif`;
  return context.measureText(text).width;
}

// a whole drawing on the page's own background
function sheetOfPaper(least, height, title, body) {
  const width = Math.max(least, widthOf(about.title, 15, 600), widthOf(title, 12, 400));
  const heading = words(0, 15, about.title, { size: 15, weight: 600 }) + words(0, 34, title, { fill: colourOf("--quiet") });
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -12 ${rounded(width + 24)} ${rounded(height + 68)}" width="${rounded(width + 24)}" ` +
    `height="${rounded(height + 68)}" font-family="system-ui, sans-serif"><title>${escaped(`${about.title}: ${title}`)}</title>` +
    `${rect([-12, -12, width + 24, height + 68], colourOf("--paper"))}${heading}<g transform="translate(0 44)">${body}</g></svg>`
  );
}

// a ramp with its ends in words; `colour` of [0, 1] over `under`
function legend(x, y, colour, under, text) {
  const stops = Array.from({ length: 17 }, (_, i) => {
    const [, rgb, alpha = 1] = colour(i / 16).match(/^rgb\(([^/]*?)(?: \/ (.*))?\)$/);
    return `<stop offset="${i / 16}" stop-color="rgb(${rgb.trim().split(" ").join(",")})" stop-opacity="${alpha}"/>`;
  });
  const bar = [x, y, 96, 10];
  return `<defs><linearGradient id="ramp">${stops.join("")}</linearGradient></defs>${rect(bar, under)}${rect(bar, "url(#ramp)")}${words(x + 104, y + 10, text, { fill: colourOf("--quiet") })}`;
}

// one picture of `wide` with the attention over it, at (x, y)
function pictureWith({ panel, keys, side, picture }, wide, x, y, weights, top, heads) {
  const [left, upper, right, lower] = panel.extent, scale = wide / (right - left), high = (lower - upper) * scale;
  const boxOf = ([x0, y0, x1, y1]) => [(x0 - left) * scale, (y0 - upper) * scale, (x1 - x0) * scale, (y1 - y0) * scale];
  const parts = [rect([0, 0, wide, high], "#26282c")];
  if (panel.url) {
    const pixels = picture.classList.contains("small") ? ' image-rendering="pixelated"' : "";
    const [px, py, pw, ph] = boxOf(panel.box).map(rounded);
    parts.push(`<image href="${panel.url}" x="${px}" y="${py}" width="${pw}" height="${ph}" preserveAspectRatio="none"${pixels}/>`);
  }
  if (state.overlay) {
    parts.push(rect([0, 0, wide, high], "#000000", `fill-opacity="${DIMMED}"`));
    for (const key of keys) {
      const t = Math.min(1, weights[key] / top), alpha = panel.placed ? overlayAlpha(t) : 1;
      parts.push(rect(boxOf(placeOf.get(key).box), `${css("dark", t).replaceAll(" ", ",")}`, `fill-opacity="${rounded(alpha)}" data-position="${about.positions[key]}"`));
    }
    if (panel.grids.length > 1) for (const grid of panel.grids) parts.push(rect(boxOf(frameOf(grid)), "none", 'stroke="#ffffff" stroke-opacity=".45"'));
    for (const key of keys) if (isSinkOf(heads, key, side)) parts.push(dashed(boxOf(placeOf.get(key).box)));
  }
  return { high, body: `<g transform="translate(${rounded(x)} ${rounded(y)})">${parts.join("")}</g>` };
}

// drawings in lines of a few, each with a caption of two ends
function inLines(entries, wide, n, gap = 12) {
  let x = 0, y = 0, tallest = 0, widest = 0;
  const parts = entries.map(({ draw: drawn, name, value }, i) => {
    if (i && i % n === 0) (x = 0), (y += tallest + LINE + gap), (tallest = 0);
    const { high, body } = drawn(x, y);
    tallest = Math.max(tallest, high);
    widest = Math.max(widest, x + wide);
    const said = words(x, y + high + 14, name, { size: 11 }) + words(x + wide, y + high + 14, value, { size: 11, anchor: "end" });
    x += wide + gap;
    return body + said;
  });
  return { width: widest, height: y + tallest + LINE + 8, body: parts.join("") };
}

function figureOfPictures({ bySide, heads, top, query }) {
  const visible = drawings.filter((drawing) => !drawing.figure.hidden);
  const entries = visible.map((drawing) => ({
    draw: (x, y) => pictureWith(drawing, EDGE, x, y, bySide[drawing.side], top, heads),
    name: drawing.label,
    value: drawing.share.textContent,
  }));
  const { width, height, body } = inLines(entries, EDGE, SIDES.length > 1 ? 2 : 4);
  const ramp = legend(0, height, (t) => css("dark", t, overlayAlpha(t)), "#4d4d4d", document.getElementById("picture-range").textContent);
  return sheetOfPaper(width, height + LINE, `${nameOfHeads(heads)} looking from ${nameOfQuery(query)}`, body + ramp);
}

function figureOfMap({ key, column, theme }) {
  const values = column ?? shownMap(), range = rangeOf(values), size = Math.max(9, Math.min(34, 900 / N_HEADS)), left = 28;
  const quiet = { size: 10, fill: colourOf("--quiet") }, every = Math.ceil(14 / size), parts = [];
  values.forEach((value, i) => {
    const box = [left + size * (i % N_HEADS), size * Math.floor(i / N_HEADS), size - 1, size - 1];
    if (!Number.isNaN(value)) parts.push(rect(box, mapColour(theme, value, range).replaceAll(" ", ","), `data-head="${headName(Math.floor(i / N_HEADS), i % N_HEADS)}"`));
  });
  const around = ([layer, head], rest) => parts.push(rect([left + size * head, size * layer, size - 1, size - 1], "none", `stroke="${colourOf("--ink")}" stroke-width="2" ${rest}`));
  marked.forEach((head) => around(head, 'stroke-dasharray="2 2"'));
  state.chosen.forEach((head) => around(head, ""));
  about.layers.forEach((layer, i) => i % every || parts.push(words(left - 6, size * (i + 0.5) + 4, layer, { ...quiet, anchor: "end" })));
  about.heads.forEach((head, i) => i % every || parts.push(words(left + size * (i + 0.5), size * N_LAYERS + 14, head, { ...quiet, anchor: "middle" })));
  parts.push(legend(left, size * N_LAYERS + 26, (t) => mapColour(theme, range[0] + t * (range[1] - range[0]), range), colourOf("--paper"), rangeInWords(range)));
  return sheetOfPaper(left + size * N_HEADS, size * N_LAYERS + 40, `${key === null ? `${about.maps[state.map].label}: ` : ""}${meaningOfMap(key)}`, parts.join(""));
}

function figureOfSheet() {
  const heads = headsOfSheet(), drawing = sheetPanels[sheetPanel.value || 0], values = shownMap();
  const entries = heads.map((head) => {
    const weights = weightsOf(state.query, ...head, state.side);
    return {
      draw: (x, y) => pictureWith({ ...drawing, side: state.side }, THUMB, x, y, weights, fullColourAt(weights, [head], state.side), [head]),
      name: headName(...head),
      value: three(values[head[0] * N_HEADS + head[1]]),
    };
  });
  const { width, height, body } = inLines(entries, THUMB, 8);
  return sheetOfPaper(width, height, `${about.maps[state.map].label}, looking from ${nameOfQuery(state.query)}`, body);
}

