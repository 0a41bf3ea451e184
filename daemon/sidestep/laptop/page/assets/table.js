// The table of flows: only the rows in view exist, so that ten thousand cost what forty do.

const HEIGHT = 24;
const AROUND = 8;
const COLUMNS = [
  ["Time", "", (row) => clock(row.time)],
  ["Method", "", (row) => row.method],
  ["Status", "number", (row) => (row.status ? String(row.status) : row.ended || row.lost ? "–" : "")],
  ["Duration", "number", (row) => (row.status ? duration(row.seconds || 0) : "")],
  ["Size", "number", (row) => size(row.received)],
  ["Request", "", (row) => target(row)],
  ["Answered by", "", (row) => answerer(row)],
  ["Client", "", (row) => row.client],
  ["Pod", "", (row) => row.pod],
];

export class Table {
  /** `onChosen(id)` is called when another row is chosen, `onOpened(id)` when it is to be opened. */
  constructor(head, rows, { onChosen, onOpened }) {
    this.rows = rows;
    this.flows = [];
    this.chosen = 0;
    this.follow = true;
    this.shown = new Map();
    this.spacer = document.createElement("div");
    this.onChosen = onChosen;
    rows.append(this.spacer);
    for (const [name, kind] of COLUMNS) head.append(cell(name, kind));
    rows.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(rows);
    rows.addEventListener("click", (event) => this.choose(idOf(event)));
    rows.addEventListener("dblclick", (event) => onOpened(idOf(event)));
  }

  /** Show these flows, in this order. */
  set(flows) {
    this.flows = flows;
    this.spacer.style.height = `${flows.length * HEIGHT}px`;
    if (this.follow) this.rows.scrollTop = this.rows.scrollHeight;
    this.draw();
  }

  scrolled() {
    this.follow = this.rows.scrollTop + this.rows.clientHeight >= this.rows.scrollHeight - HEIGHT;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.rows.scrollTop / HEIGHT) - AROUND);
    const end = Math.min(this.flows.length, Math.ceil((this.rows.scrollTop + this.rows.clientHeight) / HEIGHT) + AROUND);
    const wanted = new Set();
    for (let index = first; index < end; index += 1) wanted.add(this.flows[index].id);
    const free = [];
    for (const [id, element] of this.shown) {
      if (!wanted.has(id)) {
        this.shown.delete(id);
        free.push(element);
      }
    }
    for (let index = first; index < end; index += 1) {
      const row = this.flows[index];
      let element = this.shown.get(row.id);
      if (!element) {
        element = free.pop() || this.make();
        this.shown.set(row.id, element);
      }
      this.fill(element, row, index);
    }
    for (const element of free) element.remove();
  }

  make() {
    const element = document.createElement("div");
    element.className = "row";
    element.setAttribute("role", "row");
    for (const [, kind] of COLUMNS) element.append(cell("", kind));
    this.rows.append(element);
    return element;
  }

  fill(element, row, index) {
    element.style.top = `${index * HEIGHT}px`;
    element.dataset.id = String(row.id);
    element.setAttribute("aria-rowindex", String(index + 1));
    element.setAttribute("aria-selected", String(row.id === this.chosen));
    if (element.drawn === row) return;
    element.drawn = row;
    COLUMNS.forEach(([, , text], column) => {
      const value = text(row);
      if (element.children[column].textContent !== value) element.children[column].textContent = value;
    });
    element.children[2].className = `number s${Math.floor((row.status || 0) / 100)}`;
    element.children[5].title = target(row);
  }

  choose(id, { scroll = false } = {}) {
    if (!id) return;
    this.chosen = id;
    if (scroll) {
      const top = this.flows.findIndex((row) => row.id === id) * HEIGHT;
      if (top < this.rows.scrollTop) this.rows.scrollTop = top;
      else if (top + HEIGHT > this.rows.scrollTop + this.rows.clientHeight) {
        this.rows.scrollTop = top + HEIGHT - this.rows.clientHeight;
      }
    }
    this.draw();
    this.onChosen(id);
  }

  /** Choose the flow `by` rows further, or the last or first for Infinity. */
  move(by) {
    if (!this.flows.length) return;
    const at = this.flows.findIndex((row) => row.id === this.chosen);
    const none = by > 0 ? -1 : this.flows.length;
    const next = Number.isFinite(by) ? (at < 0 ? none : at) + by : by;
    this.choose(this.flows[Math.min(Math.max(next, 0), this.flows.length - 1)].id, { scroll: true });
  }
}

function idOf(event) {
  const row = event.target.closest("[data-id]");
  return row ? Number(row.dataset.id) : 0;
}

function cell(text, kind) {
  const element = document.createElement("span");
  element.textContent = text;
  element.className = kind;
  return element;
}

export function clock(seconds) {
  const time = new Date(seconds * 1000);
  const pad = (value, length) => String(value).padStart(length, "0");
  return `${pad(time.getHours(), 2)}:${pad(time.getMinutes(), 2)}:${pad(time.getSeconds(), 2)}.${pad(time.getMilliseconds(), 3)}`;
}

export function duration(seconds) {
  if (seconds < 1e-3) return `${Math.round(seconds * 1e6)} µs`;
  return seconds < 1 ? `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

export function size(bytes) {
  if (bytes === undefined || bytes < 0) return "";
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1048576 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1048576).toFixed(1)} MiB`;
}

export function target(row) {
  return row.path.startsWith("/") ? `${row.authority}${row.path}` : row.path;
}

export function answerer(row) {
  if (row.lost) return `copy ${row.lost}`;
  if (row.by === "handler" && row.handler) return `handler of ${row.handler}`;
  return row.by || row.ended || "";
}
