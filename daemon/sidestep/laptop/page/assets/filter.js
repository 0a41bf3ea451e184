// Search texts: words and conditions, all of which must hold for a flow. Pure; nothing of the page is used here.

const BY = new Set(["app", "handler", "sidestep"]);
const UNITS = { us: 1e-6, ms: 1e-3, s: 1, m: 60 };

/** Returns a predicate for rows. Throws an Error whose message says what is wrong with the text. */
export function parse(text) {
  const tests = words(text).map((word) => {
    const not = word.length > 1 && word.startsWith("-");
    const test = condition(not ? word.slice(1) : word);
    return not ? (row) => !test(row) : test;
  });
  return (row) => tests.every((test) => test(row));
}

function words(text) {
  const found = text.match(/(?:[^\s"]|"[^"]*")+/g) || [];
  return found.map((word) => word.replaceAll('"', ""));
}

function condition(word) {
  const match = /^(method|path|status|header|by|slower|pod|client|session|trace)([:=~])(.*)$/s.exec(word);
  if (!match) return contains(word, (row) => `${row.method} ${row.authority}${row.path}\n${row.client}\n${row.pod}\n${row.trace || ""}`);
  const [, name, sign, value] = match;
  if (!value) throw new Error(`${name}${sign} needs a value`);
  switch (name) {
    case "method": {
      const methods = new Set(value.toUpperCase().split(","));
      return (row) => methods.has(row.method.toUpperCase());
    }
    case "path": {
      const path = (row) => row.path.split("?", 1)[0];
      if (sign === "~") return matches(value, path);
      return sign === "=" ? (row) => path(row) === value : (row) => path(row).startsWith(value);
    }
    case "status":
      return status(value);
    case "header":
      return header(value);
    case "by":
      if (!BY.has(value)) throw new Error("by: is one of app, handler, sidestep");
      return (row) => row.by === value;
    case "slower": {
      const parts = /^(\d+(?:\.\d+)?)(us|ms|s|m)$/.exec(value);
      if (!parts) throw new Error("slower: is a time, like 200ms");
      const least = Number(parts[1]) * UNITS[parts[2]];
      return (row) => (row.seconds || 0) >= least;
    }
    default:
      return contains(value, (row) => String(row[name] || ""));
  }
}

function contains(value, of) {
  const wanted = value.toLowerCase();
  return (row) => of(row).toLowerCase().includes(wanted);
}

function matches(pattern, of) {
  let regex;
  try {
    regex = new RegExp(pattern, "u");
  } catch {
    throw new Error(`${pattern} is no regular expression`);
  }
  return (row) => regex.test(of(row));
}

function status(value) {
  const tests = value.toLowerCase().split(",").map((each) => {
    if (each === "none") return (code) => !code;
    if (/^[1-5]xx$/.test(each)) return (code) => Math.floor(code / 100) === Number(each[0]);
    if (/^[1-5]\d\d$/.test(each)) return (code) => code === Number(each);
    throw new Error("status: is a number like 404, a class like 5xx, or none");
  });
  return (row) => tests.some((test) => test(row.status || 0));
}

function header(value) {
  const match = /^([^=~]+)(?:([=~])(.*))?$/s.exec(value);
  if (!match) throw new Error("header: is NAME, NAME=VALUE or NAME~REGEX");
  const name = match[1].toLowerCase();
  const test = match[2] === "~" ? matches(match[3], (found) => found)
    : match[2] === "=" ? (found) => found === match[3] : () => true;
  return (row) => (row.fields || []).some(([field, found]) => {
    const same = field.toLowerCase() === name || (name === "host" && field === ":authority");
    return same && test(found);
  });
}
