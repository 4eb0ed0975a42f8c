// Shows what the chosen engine needs, and nothing else.

const form = document.getElementById("join-form");
const engine = form.elements.engine;

function show() {
  const server = engine.value === "server";
  form.querySelector('[data-field="python"]').hidden = engine.value !== "python";
  form.querySelector('[data-field="server"]').hidden = !server;
  form.querySelector('[data-field="offered"]').hidden = server;
}

engine.addEventListener("change", show);
show();
