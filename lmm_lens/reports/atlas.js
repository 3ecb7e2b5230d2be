"use strict"
const records = JSON.parse(document.getElementById("records").textContent)
const COLORS = ["#1b6ca8", "#d1603d", "#3c8d53", "#8859a8", "#b58900", "#5f6b7a"]
const HEIGHT = 260
const at = id => document.getElementById(id)
const chosen = { study: records[0].study, metric: "", data: "", query: "", models: new Set() }

const make = (tag, text, into, attributes = {}) => {
  const element = document.createElement(tag)
  if (text !== undefined) element.textContent = text
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  if (into) into.append(element)
  return element
}
const drawn = (tag, attributes, into, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  if (text !== undefined) element.textContent = text
  into.append(element)
  return element
}
// a name beside a patch of its colour: coloured words are hard to read
const named = (text, color, into) => {
  const element = make("span", undefined, into, { class: "named" })
  make("i", undefined, element).style.background = color
  element.append(text)
}
const number = value => value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString()
const ofStudy = () => records.filter(record => record.study === chosen.study)
const shown = () => ofStudy().filter(record => chosen.models.has(record.name))
const color = record => COLORS[ofStudy().indexOf(record) % COLORS.length]
const union = lists => [...new Set(lists.flat())]

// a score of a record: of one data set, or the mean over all that have it; kind is "maps" or "layers"
const score = (record, kind) => {
  const sets = chosen.data === "all" ? Object.keys(record[kind]) : [chosen.data]
  const found = sets.map(set => record[kind][set]?.[chosen.query]?.[chosen.metric]?.mean).filter(Boolean)
  return found.length ? mean(found) : null
}
const mean = all => Array.isArray(all[0])
  ? all[0].map((_, i) => mean(all.map(each => each[i])))
  : (known => known.length ? known.reduce((a, b) => a + b, 0) / known.length : null)(all.filter(x => x !== null))

const options = (id, names) => {
  if (!names.includes(chosen[id])) chosen[id] = names[0]
  at(id).replaceChildren(...names.map(name => make("option", name, null, { value: name })))
  at(id).value = chosen[id]
}

function choose() {
  const own = ofStudy()
  options("study", union(records.map(record => record.study)))
  options("data", ["all", ...union(own.map(record => Object.keys(record.maps)))])
  const sets = own.flatMap(record => Object.values(record.maps))
  options("query", union(sets.map(set => Object.keys(set))))
  options("metric", union(sets.flatMap(set => Object.values(set)).map(query => Object.keys(query))))
  const box = at("models")
  box.querySelectorAll("label").forEach(label => label.remove())
  for (const record of own) {
    const label = make("label", undefined, box)
    const input = make("input", undefined, label, { type: "checkbox", value: record.name })
    input.checked = chosen.models.has(record.name)
    input.addEventListener("change", () => {
      chosen.models[input.checked ? "add" : "delete"](record.name)
      show()
    })
    named(record.name, color(record), label)
  }
}

// viridis, at five points
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]
const shade = share => {
  const x = Math.min(0.9999, Math.max(0, share)) * 4, i = Math.floor(x)
  return `rgb(${SCALE[i].map((c, k) => Math.round(c + (x - i) * (SCALE[i + 1][k] - c))).join(",")})`
}

function maps() {
  const found = shown().map(record => [record, score(record, "maps")]).filter(([, values]) => values)
  const largest = Math.max(1e-9, ...found.flatMap(([, values]) => values.flat().filter(x => x !== null)))
  at("maps").replaceChildren()
  at("said").textContent = `scale: 0 to ${number(largest)}`
  for (const [record, values] of found) {
    const figure = make("figure", undefined, at("maps"))
    make("figcaption", `${record.name}: ${values.length} layers x ${values[0].length} heads`, figure)
    const side = Math.max(4, Math.min(26, 520 / values[0].length))
    const canvas = make("canvas", undefined, figure, { width: side * values[0].length, height: HEIGHT, role: "img" })
    canvas.setAttribute("aria-label", `map of ${record.name}`)
    const pen = canvas.getContext("2d")
    values.forEach((row, layer) => row.forEach((value, head) => {
      pen.fillStyle = value === null ? "#bbb" : shade(value / largest)
      pen.fillRect(head * side, layer * HEIGHT / values.length, side, HEIGHT / values.length)
    }))
    canvas.addEventListener("mousemove", event => {
      const box = canvas.getBoundingClientRect()
      const head = Math.min(values[0].length - 1, Math.floor((event.clientX - box.left) / box.width * values[0].length))
      const layer = Math.min(values.length - 1, Math.floor((event.clientY - box.top) / box.height * values.length))
      at("said").textContent = `${record.name} L${layer}H${head}: ${number(values[layer][head])}`
    })
  }
}

function plot(into, lines, { xlabel, ylabel, log = false }) {
  into.replaceChildren()
  const points = lines.flatMap(line => line.points).filter(([, y]) => y !== null)
  if (!points.length) return
  const [w, h, left, bottom] = [720, 280, 64, 40]
  const x = log ? value => Math.log2(value) : value => value
  const xs = points.map(([value]) => x(value)), ys = points.map(([, value]) => value)
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(0, ...ys), Math.max(1e-9, ...ys)]
  const px = value => left + (x(value) - x0) / (x1 - x0 || 1) * (w - left - 20)
  const py = value => 12 + (y1 - value) / (y1 - y0) * (h - 12 - bottom)
  const svg = drawn("svg", { viewBox: `0 0 ${w} ${h}`, width: w, height: h, role: "img" }, into)
  svg.setAttribute("aria-label", ylabel)
  drawn("line", { class: "axis", x1: left, x2: w - 20, y1: py(0), y2: py(0) }, svg)
  drawn("line", { class: "axis", x1: left, x2: left, y1: 12, y2: h - bottom }, svg)
  for (const value of [y0, (y0 + y1) / 2, y1]) drawn("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, svg, number(value))
  const ticks = log ? union(points.map(([value]) => value)) : [x0, (x0 + x1) / 2, x1]
  for (const value of ticks) drawn("text", { x: px(value), y: h - bottom + 16, "text-anchor": "middle" }, svg, number(value))
  drawn("text", { x: (left + w) / 2, y: h - 6, "text-anchor": "middle" }, svg, xlabel)
  drawn("text", { x: 14, y: h / 2, transform: `rotate(-90 14 ${h / 2})`, "text-anchor": "middle" }, svg, ylabel)
  for (const line of lines) {
    const known = line.points.filter(([, y]) => y !== null)
    drawn("polyline", {
      points: known.map(([a, b]) => `${px(a)},${py(b)}`).join(" "), fill: "none", stroke: line.color,
      "stroke-width": 2, ...(line.dashed ? { "stroke-dasharray": "5 4" } : {}),
    }, svg)
  }
  const names = make("p", undefined, into)
  for (const line of lines.filter(line => line.name)) named(line.name, line.color, names)
}

function profile() {
  const lines = shown().map(record => [record, score(record, "layers")]).filter(([, values]) => values).map(([record, values]) => ({
    name: record.name, color: color(record), points: values.map((value, i) => [values.length > 1 ? i / (values.length - 1) : 0, value]),
  }))
  plot(at("profile"), lines, { xlabel: "relative depth: 0 first layer, 1 last", ylabel: chosen.metric.replace("_", " ") })
}

function curves() {
  at("curves").replaceChildren()
  if (chosen.study !== "heads") return
  const lines = [], alone = shown().length === 1  // then colours tell data sets apart
  for (const record of shown()) {
    const sets = union(record.removal.map(row => row.data))
    for (const data of sets) {
      const own = alone ? COLORS[sets.indexOf(data) % COLORS.length] : color(record)
      if (chosen.data !== "all" && data !== chosen.data) continue
      const rows = record.removal.filter(row => row.data === data && row.set === "top" && row.outcome === "accuracy")
      rows.sort((a, b) => a.k - b.k)
      lines.push({ name: `${record.name}, ${data}`, color: own, points: rows.map(row => [row.k, row.effect]) })
      lines.push({ color: own, dashed: true, points: rows.map(row => [row.k, row.control]) })
    }
  }
  make("h2", "Accuracy lost without the top heads", at("curves"))
  make("p", "Dashed: without as many random heads of the same layers.", at("curves"))
  plot(make("div", undefined, at("curves")), lines, { xlabel: "heads removed", ylabel: "accuracy lost", log: true })
}

function table(into, columns, rows, verdicts = -1) {
  into.replaceChildren()
  const element = make("table", undefined, into), head = make("tr", undefined, make("thead", undefined, element))
  columns.forEach(name => make("th", name, head))
  const body = make("tbody", undefined, element)
  for (const row of rows) {
    const line = make("tr", undefined, body)
    row.forEach((cell, i) => make("td", cell, line, i === verdicts ? { class: cell } : {}))
  }
}

function claims() {
  const rows = shown().flatMap(record => record.claims.map(claim => [
    claim.claim, record.name, claim.data, claim.verdict,
    claim.low === null ? number(claim.value) : `${number(claim.value)} (${number(claim.low)} to ${number(claim.high)})`,
    number(claim.control_value), number(claim.p), String(claim.n), claim.statistic,
  ]))
  const order = union(rows.map(row => row[0]))
  rows.sort((a, b) => order.indexOf(a[0]) - order.indexOf(b[0]))
  table(at("claims"), ["claim", "model", "data", "verdict", "value", "control", "p", "n", "statistic"], rows, 3)
}

function about() {
  table(at("about"), ["name", "model", "family", "parameters", "layers", "heads", "dtype", "sinks", "lmm-lens", "torch"], shown().map(record => [
    record.name, record.model.id, record.model.family, `${number(record.model.n_parameters / 1e6)} million`, String(record.model.n_layers),
    String(record.model.n_heads), record.model.dtype, record.sinks.dims.join(" ") || "none", record.versions["lmm-lens"], record.versions.torch,
  ]))
}

const quoted = cell => /[",\n]/.test(String(cell)) ? `"${String(cell).replaceAll('"', '""')}"` : String(cell ?? "")
const csv = rows => [Object.keys(rows[0]), ...rows.map(row => Object.values(row))].map(row => row.map(quoted).join(",")).join("\n") + "\n"
const save = (name, text) => {
  const link = make("a", undefined, null, { href: URL.createObjectURL(new Blob([text])), download: name })
  link.click()
  URL.revokeObjectURL(link.href)
}

function downloads() {
  at("downloads").replaceChildren()
  const button = (text, act) => make("button", text, at("downloads"), { type: "button" }).addEventListener("click", act)
  button("maps.csv", () => save("maps.csv", csv(shown().flatMap(record => (score(record, "maps") ?? []).flatMap((row, layer) =>
    row.map((value, head) => ({ model: record.name, data: chosen.data, query: chosen.query, metric: chosen.metric, layer, head, value })))))))
  button("claims.csv", () => save("claims.csv", csv(shown().flatMap(record => record.claims.map(claim => ({ model: record.name, ...claim }))))))
  const rows = chosen.study === "heads" ? "removal" : "conditions"
  if (shown().some(record => record[rows].length)) {
    button(`${rows}.csv`, () => save(`${rows}.csv`, csv(shown().flatMap(record => record[rows].map(row => ({ model: record.name, ...row }))))))
  }
  for (const record of shown()) button(`${record.name}.json`, () => save(`${record.name}.json`, JSON.stringify(record, null, 2)))
}

function show() {
  for (const draw of [choose, maps, profile, curves, claims, about, downloads]) draw()
}
for (const id of ["study", "metric", "data", "query"]) {
  at(id).addEventListener("change", event => {
    chosen[id] = event.target.value
    if (id === "study") chosen.models = new Set(ofStudy().map(record => record.name))
    show()
  })
}
chosen.models = new Set(ofStudy().map(record => record.name))
show()
