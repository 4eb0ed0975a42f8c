// Follows the hosts that come with one token: asks each second how far they are, and says it.

const EVERY_MS = 1000;
const LATE_MS = 60_000;
const WORDS = { done: "done", now: "under way", waiting: "not yet", failed: "failed" };
const at = (id) => document.getElementById(id);
const options = JSON.parse(at("options").textContent);
const csrf = at("join").dataset.csrf;
const begun = Date.now();
let shown = ""; // what the list was drawn from
let answered = Date.now();
const ready = new Set();

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function step(of) {
  const item = element("li");
  const mark = element("span", "mark");
  mark.dataset.state = of.state;
  mark.setAttribute("aria-hidden", "true");
  const words = element("div");
  words.append(element("strong", "", of.name), element("span", "unseen", ` (${WORDS[of.state]})`), `: ${of.words}`);
  if (of.progress !== null && of.progress > 0) {
    const bar = element("progress");
    bar.max = 1;
    bar.value = of.progress;
    bar.setAttribute("aria-label", of.name);
    words.append(bar);
  }
  item.append(mark, words);
  return item;
}

function link(href, text, main) {
  const made = element("a", main ? "button main" : "button", text);
  made.href = href;
  return made;
}

function card(node) {
  const box = element("article", node.ready ? "node ready" : "node");
  box.dataset.node = node.name;
  const steps = element("ol");
  steps.append(...node.steps.map(step));
  const actions = element("div", "row");
  if (node.pending && options.approve) {
    const approve = element("button", "main", "Approve");
    approve.type = "button";
    approve.addEventListener("click", () => approveNode(node, approve));
    actions.append(approve);
  }
  if (node.model && options.playground) {
    actions.append(link(`${options.playground}?model=${encodeURIComponent(node.model)}`, "Try it in the playground", true));
  }
  if (options.node) actions.append(link(options.node.replace(options.anyNode, node.id), "Look at the node"));
  box.append(element("h3", "", node.ready ? `${node.name} is ready` : node.name), steps, actions);
  return box;
}

async function approveNode(node, button) {
  button.disabled = true;
  const url = options.approve.replace(options.anyNode, node.id);
  const answer = await fetch(url, { method: "POST", headers: { "X-CSRFToken": csrf } }).catch(() => null);
  if (!answer?.ok) {
    button.disabled = false;
    tell(`${node.name} could not be approved: try again.`, true);
  }
}

function tell(text, bad = false) {
  at("told").textContent = text;
  at("stale").hidden = !bad;
  if (bad) at("stale").textContent = text;
}

function take(report) {
  at("stale").hidden = true;
  const left = report.expires_at ? ` until ${new Date(report.expires_at * 1000).toLocaleString()}` : "";
  const uses = `${report.uses} of ${report.max_uses || "any number of"} hosts have used it`;
  at("token-state").textContent = `The token is ${report.token}${report.token === "valid" ? left : ""}; ${uses}.`;
  at("late-token").textContent = report.token;
  at("waiting").hidden = report.nodes.length > 0;
  const fetched = report.fetched_at !== null;
  const words = fetched
    ? `A host fetched the agent at ${new Date(report.fetched_at * 1000).toLocaleTimeString()}: it reaches this coordinator, and installs. With vLLM that takes minutes.`
    : "Waiting for the host.";
  if (at("waiting-words").textContent !== words) at("waiting-words").textContent = words;
  at("late").hidden = fetched || Date.now() - begun < LATE_MS;
  at("late-words").textContent = "Nothing has come within a minute.";
  const drawn = JSON.stringify(report.nodes);
  if (drawn === shown) return;
  shown = drawn;
  const focused = document.activeElement?.closest?.("#nodes .node")?.dataset.node;
  at("nodes").replaceChildren(...report.nodes.map(card));
  if (focused) at("nodes").querySelector(`[data-node="${CSS.escape(focused)}"] button, [data-node="${CSS.escape(focused)}"] a`)?.focus();
  for (const node of report.nodes) {
    if (node.ready && !ready.has(node.id)) {
      ready.add(node.id);
      tell(`${node.name} is ready`);
    }
  }
}

async function look() {
  try {
    const answer = await fetch(options.state, { headers: { Accept: "application/json" } });
    if (answer.redirected || !answer.ok) throw new Error(answer.redirected ? "log in again" : `status ${answer.status}`);
    take(await answer.json());
    answered = Date.now();
  } catch (error) {
    const seconds = Math.round((Date.now() - answered) / 1000);
    tell(`No news for ${seconds} s (${error.message}); trying again.`, true);
  }
  setTimeout(look, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

for (const place of document.querySelectorAll("[data-address]")) place.textContent = location.origin;
look();
