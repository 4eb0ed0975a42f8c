// The dashboard: shows what the server sends, and says so when it has not heard from it.

import { refresh, setClock, words } from "./ago.js";
import { Charts } from "./charts.js";
import { morph } from "./morph.js";
import { Socket } from "./socket.js";

const STALE_MS = 5000;

const root = document.getElementById("gt-live");
const cards = document.getElementById("gt-nodes");
const form = document.getElementById("gt-view");
const banner = document.getElementById("gt-stale");

let heard = performance.now(); // when what is shown was true
setClock(Number(root.dataset.at));
root.querySelectorAll("[data-chart]").length && new Charts(root, root.dataset.history);

// -- what comes ------------------------------------------------------------------------------------

function show(message) {
  heard = performance.now();
  setClock(message.at);
  for (const [name, html] of Object.entries(message.parts ?? {})) {
    const part = root.querySelector(`[data-part="${CSS.escape(name)}"]`);
    if (part) morph(part, html);
  }
  const known = new Map([...cards.children].map((card) => [card.dataset.key, card]));
  for (const [id, html] of Object.entries(message.cards ?? {})) {
    if (!known.has(id)) {
      const card = document.createElement("li");
      card.dataset.key = id;
      known.set(id, card);
    }
    morph(known.get(id), html);
  }
  if (message.order) arrange(message.order, known);
  refresh(root);
  status();
}

function arrange(order, known) {
  const wanted = order.map((id) => known.get(id)).filter(Boolean);
  const stays = new Set(wanted);
  for (const card of [...cards.children]) stays.has(card) || card.remove();
  wanted.forEach((card, i) => cards.children[i] === card || cards.insertBefore(card, cards.children[i] ?? null));
}

// -- whether it still comes ------------------------------------------------------------------------

const says = document.createElement("span");
const age = document.createElement("span");
age.setAttribute("aria-hidden", "true"); // it changes each second: not to be read out each time
banner.append(says, " ", age);

function status() {
  const quiet = performance.now() - heard;
  banner.hidden = !socket.loggedOut && quiet < STALE_MS && (socket.connected || quiet < STALE_MS / 2);
  root.classList.toggle("gt-is-stale", !banner.hidden);
  if (banner.hidden) return;
  const text = socket.loggedOut
    ? "You are logged out, or may no longer see this. Reload the page to log in."
    : socket.connected
      ? "The coordinator sends nothing. What you see is old."
      : "The connection is lost; trying again. What you see is old.";
  if (says.textContent !== text) says.textContent = text;
  age.textContent = `It was so ${words(quiet / 1000)}.`;
}

// -- what is wanted --------------------------------------------------------------------------------

function view() {
  const { q, show: which, page } = form.elements;
  return { q: q.value.trim(), show: which.value, page: Number(page.value) };
}

function query() {
  const { q, show: which, page } = view();
  const wanted = new URLSearchParams({ ...(q && { q }), ...(which && { show: which }), ...(page > 1 && { page }) });
  return wanted.size ? `?${wanted}` : "";
}

function want() {
  history.replaceState(null, "", location.pathname + query());
  socket.send({ view: view() });
}

let soon;
form.addEventListener("input", () => {
  clearTimeout(soon);
  form.elements.page.value = 1;
  soon = setTimeout(want, 200);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  want();
});
root.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-page]");
  if (!button) return;
  form.elements.page.value = button.dataset.page;
  want();
});

const address = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${root.dataset.socket}`;
const socket = new Socket(() => address + query(), show, () => status());
refresh(root);
setInterval(() => {
  if (document.hidden) return;
  refresh(root);
  status();
}, 1000);
