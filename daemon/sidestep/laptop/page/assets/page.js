// The page: receives changes, keeps the flows, and joins search, table, details and keys.

import { Detail, element, fields } from "./detail.js";
import { parse } from "./filter.js";
import { Table } from "./table.js";

const $ = (id) => document.getElementById(id);
const flows = new Map();
let wanted = () => true;
let paused = false;
let waiting = 0;
let cleared = -1;
let drawing = false;

const table = new Table($("head"), $("rows"), { onChosen: chosen, onOpened: open });
const detail = new Detail($("detail"), { onReplay: replay });

const stream = new EventSource("events");
stream.addEventListener("flows", (event) => take(JSON.parse(event.data)));
stream.addEventListener("board", (event) => board(JSON.parse(event.data)));
stream.addEventListener("error", () => say("The command that serves this page has ended, or cannot be reached."));
stream.addEventListener("open", () => say(""));

function take(changes) {
  const gone = changes.cleared !== cleared;
  if (gone) {
    cleared = changes.cleared;
    flows.clear();
    waiting = 0;
  }
  for (const row of changes.rows) flows.set(row.id, row);
  for (const id of flows.keys()) {
    if (id >= changes.oldest) break;
    flows.delete(id);
  }
  if (paused && !gone) {
    waiting += changes.rows.length;
    count();
  } else {
    draw();
    if (detail.open && changes.rows.some((row) => row.id === detail.wanted)) open(detail.wanted);
  }
}

/** Draw at the next frame, however often it is asked for. */
function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const shown = [];
    for (const row of flows.values()) if (wanted(row)) shown.push(row);
    table.set(shown);
    count();
  });
}

function count() {
  const all = flows.size;
  const shown = table.flows.length;
  const more = paused && waiting ? `, ${waiting} changes wait` : "";
  $("count").textContent = (shown === all ? `${all} requests` : `${shown} of ${all} requests`) + more;
  $("empty").hidden = shown > 0;
  $("empty").textContent = all ? "No request matches." : "Waiting for requests.";
}

function search() {
  try {
    wanted = parse($("search").value);
    $("problem").textContent = "";
  } catch (error) {
    $("problem").textContent = error.message;
    return;
  }
  draw();
}

function chosen(id) {
  if (detail.open) open(id);
}

async function open(id) {
  if (!id) return;
  const turn = (detail.turn += 1);
  detail.wanted = id;
  const response = await fetch(`flows/${id}`);
  const found = response.ok ? await response.json() : null;
  if (turn !== detail.turn) return;
  if (found) detail.show(found);
  else say("This request is no longer kept.");
}

function pause() {
  paused = !paused;
  waiting = 0;
  $("pause").textContent = paused ? "Resume" : "Pause";
  $("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) draw();
  else count();
}

function post(path, value) {
  return fetch(path, { method: "POST", body: JSON.stringify(value) });
}

async function clear() {
  await post("clear", {});
  detail.close();
}

function shownIds() {
  return table.flows.map((row) => row.id);
}

async function save() {
  const response = await post("har", { ids: shownIds() });
  if (!response.ok) return say(await response.text());
  const link = element("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = "flows.har";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  return say(`${table.flows.length} requests saved as flows.har.`);
}

async function replay(ids) {
  const to = prompt(`Send ${ids.length === 1 ? "this request" : `${ids.length} requests`} again to:`,
    sessionStorage.getItem("replay-to") || "http://127.0.0.1:8080");
  if (!to) return;
  sessionStorage.setItem("replay-to", to);
  say("Sending ...");
  const response = await post("replay", { ids, to });
  if (!response.ok) {
    say(await response.text());
    return;
  }
  const found = await response.json();
  say(found.text);
  if (found.lines.length) {
    detail.close();
    showBoard(true);
    const list = element("section", "");
    list.id = "replayed";
    list.append(element("h2", "", found.text), ...found.lines.map((line) => element("p", "bad", line)));
    $("replayed")?.remove();
    $("board").prepend(list);
  }
}

function board(found) {
  detail.told(found);
  document.title = found.title ? `${found.title} - Sidestep` : "Sidestep";
  const parts = [element("h2", "", "Sessions")];
  for (const each of found.sessions) {
    const pods = each.pods.length ? each.pods.join(", ") : "no pod";
    parts.push(element("p", "", `${each.name}: ${each.state}; ${pods}`));
    for (const condition of each.conditions) parts.push(element("p", "bad", condition));
  }
  if (found.intercepts.length) parts.push(element("h2", "", "Intercepts and wiretaps of others and mine"));
  for (const each of found.intercepts) parts.push(element("p", "", `${each.kind} ${each.name}`), fields(each.fields));
  if (found.problems.length) parts.push(element("h2", "", "Problems"));
  for (const line of found.problems) parts.push(element("p", "bad", line));
  if (found.notes.length) parts.push(element("h2", "", "Notes"));
  for (const line of found.notes) parts.push(element("p", "faint", line));
  const replayed = $("replayed");
  $("board").replaceChildren(...(replayed ? [replayed] : []), ...parts);
  const problems = found.sessions.reduce((sum, each) => sum + each.conditions.length, 0);
  $("board-button").textContent = problems ? `Sessions (${problems} conditions)` : "Sessions";
}

function showBoard(wantedState) {
  const shown = wantedState ?? $("board").hidden;
  $("board").hidden = !shown;
  $("board-button").setAttribute("aria-expanded", String(shown));
}

function theme(name) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme || system;
  const next = name || (now === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = next;
  if (!name) localStorage.setItem("theme", next);
}

function say(text) {
  $("note").textContent = text;
}

const KEYS = {
  j: () => table.move(1),
  ArrowDown: () => table.move(1),
  k: () => table.move(-1),
  ArrowUp: () => table.move(-1),
  PageDown: () => table.move(20),
  PageUp: () => table.move(-20),
  Home: () => table.move(-Infinity),
  End: () => table.move(Infinity),
  Enter: () => open(table.chosen),
  "/": () => $("search").focus(),
  p: pause,
  c: clear,
  s: save,
  r: () => replay(shownIds()),
  i: () => showBoard(),
  t: () => theme(),
  "?": () => $("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.key === "Escape") {
    const wasOpen = detail.open;
    detail.close();
    if (!wasOpen) showBoard(false);
    $("rows").focus();
    return;
  }
  if (event.target.matches("input") || (event.key === "Enter" && event.target.matches("button"))) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

$("search").addEventListener("input", search);
$("pause").addEventListener("click", pause);
$("clear").addEventListener("click", clear);
$("save").addEventListener("click", save);
$("again").addEventListener("click", () => replay(shownIds()));
$("board-button").addEventListener("click", () => showBoard());
$("theme").addEventListener("click", () => theme());
$("help-button").addEventListener("click", () => $("help").showModal());
theme(localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
count();
