// The pane of one flow. Everything in it is text from the network: it is only ever set as text.

import { answerer, clock, duration, size, target } from "./table.js";

const TABS = ["Head", "Timing", "TLS", "Session", "Body"];

export class Detail {
  constructor(pane, { onReplay }) {
    this.pane = pane;
    this.onReplay = onReplay;
    this.tab = TABS[0];
    this.form = "Text";
    this.flow = null;
    /** The request that is asked for or shown, and how often one was asked for: an earlier reply is not shown. */
    this.wanted = 0;
    this.turn = 0;
    this.board = { sessions: [], intercepts: [] };
  }

  /** The sessions and intercepts that there are now, as the event `board` has them. */
  told(board) {
    this.board = board;
    if (this.open && this.tab === "Session") this.draw();
  }

  get open() {
    return !this.pane.hidden;
  }

  close() {
    this.turn += 1;
    this.wanted = 0;
    this.pane.hidden = true;
    this.flow = null;
  }

  /** Show a flow as `GET flows/ID` has it. */
  show(flow) {
    this.flow = flow;
    this.pane.hidden = false;
    this.draw();
  }

  draw() {
    const flow = this.flow;
    const title = element("p", "title", `${flow.method} ${target(flow)}`);
    const tabs = element("div", "line");
    tabs.setAttribute("role", "tablist");
    for (const name of TABS) {
      const button = element("button", "", name);
      button.setAttribute("role", "tab");
      button.setAttribute("aria-selected", String(name === this.tab));
      button.addEventListener("click", () => {
        this.tab = name;
        this.draw();
      });
      tabs.append(button);
    }
    const replay = element("button", "", "Replay this");
    replay.id = "replay-one";
    replay.addEventListener("click", () => this.onReplay([flow.id]));
    const close = element("button", "", "Close");
    close.addEventListener("click", () => this.close());
    tabs.append(replay, close);
    const parts = {
      Head: () => heads(flow),
      Timing: () => timing(flow),
      TLS: () => tls(flow),
      Session: () => this.session(flow),
      Body: () => this.bodies(flow),
    };
    this.pane.replaceChildren(title, tabs, ...parts[this.tab]());
  }

  /** The session that shows the flow, and the intercept whose handler has answered it. */
  session(flow) {
    const parts = [element("h2", "", "Shown by"), element("p", "", flow.session)];
    const shows = this.board.sessions.find((each) => each.name === flow.session);
    if (shows) {
      parts.push(fields([["state", shows.state], ["pods", shows.pods.join(", ") || "none"]]));
      for (const condition of shows.conditions) parts.push(element("p", "bad", condition));
    }
    if (flow.by !== "handler") return parts;
    parts.push(element("h2", "", "Answered by the handler of"), element("p", "", flow.handler || "an intercept"));
    const intercept = this.board.intercepts.find((each) => each.kind === "intercept" && each.name === flow.handler);
    parts.push(intercept ? fields(intercept.fields) : element("p", "faint", "It is not there, or not listed yet."));
    return parts;
  }

  bodies(flow) {
    if (flow.body === undefined || flow.body === null) {
      return [element("p", "faint", "Not kept: only a wiretap with a filter has bodies, of requests.")];
    }
    const bytes = Uint8Array.from(atob(flow.body), (character) => character.charCodeAt(0));
    const forms = element("div", "line");
    for (const form of ["Text", "JSON", "Hex"]) {
      const button = element("button", "", form);
      button.setAttribute("aria-selected", String(form === this.form));
      button.addEventListener("click", () => {
        this.form = form;
        this.draw();
      });
      forms.append(button);
    }
    const cut = flow.sent > bytes.length ? [element("p", "faint", `The first ${bytes.length} bytes.`)] : [];
    return [forms, ...cut, element("pre", "", shown(bytes, this.form))];
  }
}

function heads(flow) {
  const parts = [element("h2", "", "Request"), fields(flow.fields || [])];
  parts.push(element("h2", "", flow.status ? `Answer ${flow.status}` : "Answer"));
  if (!flow.status) parts.push(element("p", "faint", flow.ended || "None yet."));
  else parts.push(fields(flow.answer || []));
  return parts;
}

function timing(flow) {
  const rows = [
    ["received", clock(flow.time)],
    ["took", flow.status ? duration(flow.seconds || 0) : ""],
    ["answered by", answerer(flow)],
    ["ended", flow.ended || ""],
    ["protocol", [flow.protocol, flow.tls ? "over TLS" : ""].filter(Boolean).join(" ")],
    ["bytes of the request", size(flow.sent)],
    ["bytes of the answer", size(flow.received)],
    ["client", `${flow.client} port ${flow.client_port}`],
    ["pod", `${flow.pod} port ${flow.port}`],
    ["shown by", flow.session],
    ["trace id", flow.trace || ""],
    ["server", flow.server || ""],
  ];
  return [element("h2", "", "Facts"), fields(rows.filter(([, value]) => value))];
}

function tls(flow) {
  if (!flow.tls) return [element("p", "faint", "The client came in clear.")];
  const facts = flow.tls_facts;
  if (!facts) return [element("p", "faint", "The client came over TLS; nothing more is known of it.")];
  const rows = [
    ["version", facts.version],
    ["cipher", facts.cipher],
    ["server name (SNI)", facts.server_name || "none"],
    ["protocol chosen (ALPN)", facts.alpn || "none"],
    ["client certificate", facts.client || "none"],
    ["JA4", facts.ja4 || ""],
    ["JA3", facts.ja3 || ""],
  ];
  return [element("h2", "", "TLS of the client"), fields(rows.filter(([, value]) => value))];
}

export function fields(pairs) {
  const table = element("table", "fields");
  for (const [name, value] of pairs) {
    const row = element("tr", "");
    row.append(element("td", "", name), element("td", "", value));
    table.append(row);
  }
  return table;
}

function shown(bytes, form) {
  if (form === "Hex") return hex(bytes);
  const text = new TextDecoder().decode(bytes);
  if (form === "Text") return text;
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return "(not JSON)";
  }
}

function hex(bytes) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = [...bytes.slice(at, at + 16)];
    const codes = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(47);
    const letters = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${at.toString(16).padStart(8, "0")}  ${codes}  ${letters}`);
  }
  return lines.join("\n");
}

export function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}
