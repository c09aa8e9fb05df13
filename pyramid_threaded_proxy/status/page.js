"use strict"
const $ = id => document.getElementById(id)
const body = document.body, path = body.dataset.path, token = body.dataset.token
const first = JSON.parse($("data").textContent)
const GROUPS = ["whole", "client", "upstream", "closed", "fault"]
const keep = { seconds: 600, minutes: 1440 }
const history = { seconds: first.seconds, minutes: first.minutes }
let found = first, range = "seconds", timer = 0
const before = new Map()

// Units, as in units.py

const short = n => n >= 99.5 || n === Math.round(n) ? String(Math.round(n)) : n >= 9.95 ? n.toFixed(1) : n.toFixed(2).replace(/\.?0+$/, "")
const size = count => {
  let unit = 0
  while (count >= 999.5 && unit < 4) { count /= 1024; unit++ }
  return `${unit ? short(count) : Math.round(count)} ${["B", "KiB", "MiB", "GiB", "TiB"][unit]}`
}
const duration = seconds => {
  if (seconds < 0.9995) return `${seconds < 0.00995 ? short(seconds * 1000) : Math.round(seconds * 1000)} ms`
  if (seconds < 59.95) return `${seconds < 9.95 ? short(seconds) : seconds.toFixed(0)} s`
  const whole = Math.round(seconds)
  for (const [unit, length, lower, part] of [["d", 86400, "h", 3600], ["h", 3600, "min", 60], ["min", 60, "s", 1]])
    if (whole >= length) {
      const rest = Math.floor(whole % length / part)
      return `${Math.floor(whole / length)} ${unit}` + (rest ? ` ${rest} ${lower}` : "")
    }
}
const rate = n => `${short(n)}/s`

// Plots, as in plots.py

const W = 600, H = 170, L = 62, TOP = 10, BOTTOM = 20
const PLOTS = {
  ended: { kind: "stacked", series: GROUPS, unit: rate },
  bytes: { kind: "lines", series: ["down", "up"], unit: n => size(n) + "/s" },
  first: { kind: "lines", series: ["p50", "p95", "p99"], unit: duration },
  active: { kind: "level", series: ["active"], unit: short },
}
const svg = (name, attributes, text) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name)
  for (const key in attributes) made.setAttribute(key, attributes[key])
  if (text !== undefined) made.textContent = text
  return made
}
const nice = (most, bytes) => {
  if (most <= 0) return 1
  if (bytes) { const power = 1024 ** Math.floor(Math.max(0, Math.log(most) / Math.log(1024))); return power * nice(most / power) }
  const power = 10 ** Math.floor(Math.log10(most))
  return [1, 2, 4, 5, 8, 10].map(step => step * power).find(top => most <= top * 1.0000001)
}
const draw = figure => {
  const plot = PLOTS[figure.dataset.plot], track = history[range], steps = keep[range], limit = found.limits[0].limit
  // What is summed up in a step is shown by the second.
  const per = plot.unit === duration || plot.kind === "level" ? 1 : track.step
  let lines = plot.series.map(name => track.series[name].map(value => value === null ? null : value / per))
  const raw = lines
  if (plot.kind === "stacked")
    lines = lines.map((_, at) => lines[0].map((_, i) => lines.slice(0, at + 1).reduce((sum, line) => sum + (line[i] || 0), 0)))
  let most = Math.max(0, ...lines.flat().filter(value => value !== null))
  if (plot.kind === "level" && most > limit / 2) most = Math.max(most, limit)
  const top = nice(most, figure.dataset.plot === "bytes"), count = lines[0].length
  const x = i => (W - (W - L) * (count - 1 - i) / (steps - 1)).toFixed(1), y = v => (H - BOTTOM - (H - TOP - BOTTOM) * v / top).toFixed(1)
  const drawing = figure.querySelector("svg"), shapes = []
  const area = line => line.length ? `M${x(0)} ${y(0)}` + line.map((v, i) => `L${x(i)} ${y(v || 0)}`).join("") + `L${W} ${y(0)}Z` : ""
  const path = line => line.map((v, i) => v === null ? "" : (i && line[i - 1] !== null ? "L" : "M") + x(i) + " " + y(v)).join("")
  for (let part = 0; part < 5; part++) {
    const level = top * part / 4
    shapes.push(svg("path", { class: "grid", d: `M${L} ${y(level)}H${W}` }))
    if (part % 2 === 0) shapes.push(svg("text", { x: L - 8, y: +y(level) + 3.5, "text-anchor": "end" }, plot.unit(level)))
  }
  const ends = range === "seconds" ? ["10 min ago", "5 min"] : ["24 h ago", "12 h"]
  shapes.push(svg("text", { x: L, y: H - 4 }, ends[0]), svg("text", { x: (L + W) / 2, y: H - 4, "text-anchor": "middle" }, ends[1]),
    svg("text", { x: W, y: H - 4, "text-anchor": "end" }, "now"))
  if (plot.kind === "stacked") lines.map((line, at) => svg("path", { class: `area f${at}`, d: area(line) })).reverse().forEach(one => shapes.push(one))
  else {
    if (plot.kind === "level") shapes.push(svg("path", { class: "area fa", d: area(lines[0]) }))
    lines.forEach((line, at) => shapes.push(svg("path", { class: `line l${at}`, d: path(line) })))
    if (plot.kind === "level" && limit <= top) shapes.push(svg("path", { class: "line limit", d: `M${L} ${y(limit)}H${W}` }))
  }
  drawing.replaceChildren(...shapes)
  drawing.setAttribute("aria-label", figure.querySelector("b").textContent + (range === "seconds" ? ", the last 10 minutes" : ", the last 24 hours"))
  const details = figure.querySelector("details")
  if (details.open) fill(details.querySelector("tbody"), raw, plot, track.step)
}
const fill = (into, lines, plot, step) => {
  const count = lines[0].length, rows = []
  for (let end = count; end > 0; end -= 10) {
    const row = document.createElement("tr")
    cell(row, "", end < count ? duration((count - end) * step) : "now")
    for (const line of lines) {
      const known = line.slice(Math.max(0, end - 10), end).filter(value => value !== null)
      const value = plot.kind === "level" ? Math.max(...known) : known.reduce((sum, one) => sum + one, 0) / known.length
      cell(row, "n", known.length ? plot.unit(value) : "–")
    }
    rows.push(row)
  }
  into.replaceChildren(...rows)
}

// Tables: rows are kept and changed, so that a click never misses

const cell = (row, kind, text) => {
  const made = document.createElement("td")
  if (kind) made.className = kind
  if (text instanceof Node) made.append(text); else made.textContent = text
  row.append(made)
  return made
}
const form = (action, values) => {
  const made = document.createElement("form"), button = document.createElement("button")
  made.method = "post"; made.action = `${path}/do/${action}`
  for (const [name, value] of Object.entries({ ...values, csrf: token })) {
    const input = document.createElement("input")
    input.type = "hidden"; input.name = name; input.value = value
    made.append(input)
  }
  button.className = "do"; button.textContent = action[0].toUpperCase() + action.slice(1)
  made.append(button)
  return made
}
const tag = state => { const made = document.createElement("span"); made.className = `tag ${state}`; made.textContent = state; return made }
const spark = counts => {
  const most = Math.max(1, ...counts), step = 120 / Math.max(1, counts.length - 1)
  const made = svg("svg", { class: "spark", viewBox: "0 0 120 22", "aria-hidden": "true" })
  made.append(svg("path", { d: counts.map((n, i) => `${i ? "L" : "M"}${(i * step).toFixed(1)} ${(20 - 18 * n / most).toFixed(1)}`).join("") }))
  return made
}
const ago = when => `${duration(Math.max(0, found.time - when))} ago`
const REASONS = ["limit", "user_limit", "resting", "origin", "target", "method", "body", "descriptors"]
const pace = one => {
  const last = before.get(one.id), moved = one.up + one.down
  return last && found.time > last.time ? Math.max(0, moved - last.moved) / (found.time - last.time) : moved / Math.max(one.age, 0.001)
}
// Of each table: key, cells as [what is compared, what is shown], values of the forms, actions.
const TABLES = {
  processes: one => [one.process, [[one.process, one.process ? one.process + (one.draining ? " (stopping)" : "") : "all processes"],
    [one.active], [one.limit], [one.rate, rate(one.rate)], [one.down, size(one.down) + "/s"], [one.up, size(one.up) + "/s"],
    [one.p95 || 0, one.p95 ? duration(one.p95) : "–"], [one.bad, short(one.bad * 60) + "/min"], [one.refused]], {}, []],
  exchanges: one => [one.id, [...(found.processes.length ? [[one.process]] : []), [one.user, one.user || "–"], [one.route], [`${one.method} ${one.path}`], [one.upstream], [one.stage],
    [one.age, duration(one.age)], [one.up, size(one.up)], [one.down, size(one.down)], [one.pace, size(one.pace) + "/s"]], { id: one.id }, ["close"]],
  upstreams: one => [`${one.route} ${one.upstream}`, [[one.route], [one.upstream], [one.state, tag(one.state)], [one.why],
    [one.seconds_left ?? -1, one.seconds_left === null ? "–" : duration(one.seconds_left)],
    [one.probe ? one.probe.when : 0, one.probe ? `${one.probe.well ? "well" : "not well"}, ${ago(one.probe.when)}` : "–"],
    [one.active], [one.idle], [one.spark.join(), spark(one.spark)]], { route: one.route, upstream: one.upstream }, one.state === "up" ? ["rest", "drain"] : ["wake"]],
  limits: one => [one.route, [[one.route, one.route || "the process"], [one.spark.join(), spark(one.spark)], [one.active], [one.limit], ...REASONS.map(reason => [one.refused[reason] || 0])], {}, []],
  failures: one => [one.request_id + one.when, [[one.when, new Date(one.when * 1000).toUTCString().slice(5, 12) + new Date(one.when * 1000).toISOString().slice(11, 19)],
    [one.route], [one.userid, one.userid || "–"], [`${one.method} ${one.path}`], [one.upstream], [one.code], [one.ended], [one.rule], [one.request_id]], {}, []],
}
const sorting = {}, known = {}
const update = (name, list) => {
  const table = $(name), rows = list.map(TABLES[name]), order = sorting[name], kept = known[name] || new Map(), now = new Map()
  const kinds = [...table.tHead.rows[0].cells].map(one => one.className)
  if (order) rows.sort((one, other) => {
    const [a, b] = [one[1][order.column][0], other[1][order.column][0]]
    return (typeof a === "number" ? a - b : String(a).localeCompare(String(b))) * order.way
  })
  for (const [key, cells, values, actions] of rows) {
    let row = kept.get(key)
    if (!row) { row = { element: document.createElement("tr"), shown: [], actions: "" }; cells.forEach((_, at) => cell(row.element, kinds[at], "")) }
    cells.forEach(([value, shown = String(value)], at) => {
      const mark = shown instanceof Node ? String(value) : shown
      if (row.shown[at] === mark) return
      row.shown[at] = mark
      row.element.cells[at].replaceChildren(shown)
    })
    if (token && (name === "exchanges" || name === "upstreams") && row.actions !== String(actions)) {
      row.actions = String(actions)
      const last = row.element.cells[cells.length] || cell(row.element, "", "")
      last.replaceChildren(...actions.map(action => form(action, values)))
    }
    now.set(key, row)
  }
  known[name] = now
  const wanted = [...now.values()].map(row => row.element), there = [...table.tBodies[0].rows]
  if (wanted.length !== there.length || wanted.some((one, at) => one !== there[at])) table.tBodies[0].replaceChildren(...wanted)
  let none = table.nextElementSibling
  if (!none) { none = document.createElement("p"); none.className = "none"; none.textContent = "None."; table.after(none) }
  none.hidden = wanted.length > 0
}
const sortable = name => [...$(name).tHead.rows[0].cells].forEach((head, column) => {
  if (!head.textContent) return
  const button = document.createElement("button")
  button.type = "button"; button.textContent = head.textContent
  button.onclick = () => {
    const last = sorting[name], way = last && last.column === column ? -last.way : head.className === "n" ? -1 : 1
    sorting[name] = { column, way }
    for (const other of $(name).tHead.rows[0].cells) other.removeAttribute("aria-sort")
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending")
    show()
  }
  head.replaceChildren(button)
})

// The whole

const mean = (values, steps = 10) => { const last = values.slice(-steps).filter(one => one !== null); return last.length ? last.reduce((a, b) => a + b, 0) / last.length : 0 }
const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text }
const filter = $("filter")
const show = () => {
  const series = history.seconds.series, process = found.limits[0], p95 = mean(series.p95)
  say("tile-in-flight", short(process.active))
  say("tile-rate", short(GROUPS.reduce((sum, name) => sum + mean(series[name]), 0)))
  say("tile-down", size(mean(series.down)) + "/s"); say("tile-up", size(mean(series.up)) + "/s")
  say("tile-first", p95 ? duration(p95) : "–")
  say("tile-bad", short(GROUPS.slice(1).reduce((sum, name) => sum + mean(series[name]), 0) * 60))
  say("process", String(found.process))
  $("draining").hidden = !found.draining
  $("site").hidden = !found.processes.length; $("others").hidden = found.others_known
  update("processes", found.processes)
  document.querySelectorAll("figure").forEach(draw)
  const shown = found.exchanges.map(one => ({ ...one, pace: pace(one) }))
  say("count", `${found.in_flight} exchanges` + (found.in_flight > shown.length ? `, the ${shown.length} longest` : ""))
  update("exchanges", shown)
  update("upstreams", found.upstreams.map(one => ({ ...one, spark: found.sparks[`${one.route} ${one.upstream}`] || [] })))
  update("limits", found.limits.map(one => ({ ...one, spark: found.sparks[one.route] || [] })))
  update("failures", found.failures)
}
const join = (name, news) => {
  const track = history[name], fresh = news.next - track.next
  for (const one in news.series) track.series[one] = fresh > keep[name] ? news.series[one] : track.series[one].concat(news.series[one]).slice(-keep[name])
  track.next = news.next
}
const ask = async () => {
  clearTimeout(timer)
  if (document.hidden) return
  try {
    const query = new URLSearchParams({ since: history.seconds.next - 1, minute: history.minutes.next - 1, user: filter.user.value, route: filter.route.value })
    const response = await fetch(`${path}/status.json?${query}`, { cache: "no-store", redirect: "error" })
    if (!response.ok) throw new Error(response.status)
    const news = await response.json()
    before.clear()
    for (const one of found.exchanges) before.set(one.id, { time: found.time, moved: one.up + one.down })
    join("seconds", news.seconds); join("minutes", news.minutes)
    found = news
    show()
    $("live").className = "soft on"; say("live", "live")
  } catch (error) {
    $("live").className = "soft off"; say("live", "no answer; trying again")
  }
  timer = setTimeout(ask, 2000)
}
Object.keys(TABLES).forEach(sortable)
$("range").hidden = false
$("range").onchange = event => { range = event.target.value; show() }
filter.onsubmit = event => { event.preventDefault(); ask() }
filter.oninput = () => { clearTimeout(timer); timer = setTimeout(ask, 200) }
document.onvisibilitychange = ask
document.querySelectorAll("details").forEach(one => one.addEventListener("toggle", () => draw(one.closest("figure"))))
show()
ask()
