// The list of models, kept as the cluster has it.

import { door } from "./asking.js";

// Each look is some queries: often only while the user waits for something.
const SOON_MS = 2000;
const LATER_MS = 10_000;

export class Models {
  constructor(url, csrf, { select, standing, nothing, broken }) {
    Object.assign(this, { url, csrf, select, standing, nothing, broken });
    this.known = new Map();
    this.looking = false;
    select.addEventListener("change", () => {
      this.#describe();
      this.#look();
    });
    document.addEventListener("visibilitychange", () => this.#look());
    this.#look();
  }

  async #look() {
    if (this.looking || document.hidden) return;
    clearTimeout(this.timer);
    this.looking = true;
    try {
      this.#take((await door(this.url, this.csrf)).data);
      this.broken.hidden = true;
    } catch (error) {
      this.broken.textContent = `The list of models is not up to date: ${error.message}`;
      this.broken.hidden = false;
    }
    this.looking = false;
    this.timer = setTimeout(() => this.#look(), this.#isSettled() ? LATER_MS : SOON_MS);
  }

  /** The chosen model is loaded, none is on its way, and the last answer came. */
  #isSettled() {
    const moving = [...this.known.values()].some((model) => model.state === "loading");
    return this.broken.hidden && !moving && this.known.get(this.select.value)?.state === "loaded";
  }

  #take(models) {
    const chosen = this.select.value;
    const wanted = new URLSearchParams(location.search).get("model") ?? "";
    this.known = new Map(models.map((model) => [model.id, model]));
    const names = [...this.select.options].map((option) => option.value);
    if (names.join("\n") !== models.map((model) => model.id).join("\n")) {
      this.select.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
      const first = models.find((model) => model.id === wanted) ?? models.find((model) => model.state === "loaded");
      this.select.value = this.known.has(chosen) ? chosen : (first ?? models[0])?.id ?? "";
      this.select.dispatchEvent(new Event("change", { bubbles: true }));
    }
    for (const option of this.select.options) {
      // Which of them can answer at once is seen in the list; more of the chosen one stands below.
      const isLoaded = this.known.get(option.value).state === "loaded";
      const text = isLoaded ? option.value : `${option.value} (not loaded)`;
      if (option.textContent !== text) option.textContent = text;
    }
    this.nothing.hidden = models.length > 0;
    this.#describe();
  }

  #describe() {
    const model = this.known.get(this.select.value);
    const context = model?.max_model_len ? `, ${model.max_model_len.toLocaleString()} tokens of context` : "";
    const text = model ? `${model.words}${context}` : "";
    if (this.standing.textContent !== text) this.standing.textContent = text;
    this.standing.dataset.state = model?.state ?? "away";
    this.standing.hidden = !model; // a colour without a word says nothing
  }
}
