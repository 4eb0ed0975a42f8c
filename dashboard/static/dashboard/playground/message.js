// One message in the log: what was asked, or an answer with its figures. Text is never HTML.

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

export function asked(text) {
  const article = element("article", "user");
  article.append(element("h2", "", "You"), element("div", "text", text));
  return article;
}

export class Answer {
  /** `before` is what a plain completion goes on from. */
  constructor(model, before = "") {
    this.article = element("article", "answer");
    this.article.setAttribute("aria-busy", "true");
    this.thinking = element("div", "thinking");
    this.thinking.hidden = true;
    const text = element("div", "text");
    if (before) text.append(element("span", "asked", before));
    this.text = document.createTextNode("");
    text.append(this.text);
    this.figures = element("dl", "figures");
    this.article.append(element("h2", "", model), this.thinking, text, this.figures);
  }

  add(text) {
    this.text.appendData(text);
  }

  think(text) {
    this.thinking.hidden = false;
    this.thinking.append(text);
  }

  refuse(refused, hint) {
    const box = element("div", "error");
    box.setAttribute("role", "alert");
    const code = element("code", "", refused.code);
    box.append(code, ` ${refused.message}`);
    if (hint) box.append(element("div", "", hint));
    if (refused.requestId) box.append(element("div", "", `request id ${refused.requestId}`));
    this.article.insertBefore(box, this.figures);
  }

  /** Name and value of each; a value is text, or {text, href}. Those without a value are left out. */
  show(pairs) {
    this.figures.replaceChildren();
    for (const [name, value] of pairs) {
      if (value === "" || value === null || value === undefined) continue;
      const pair = element("div");
      const shown = element("dd");
      if (value.href) {
        const link = element("a", "", value.text);
        link.href = value.href;
        shown.append(link);
      } else {
        shown.textContent = value.text ?? value;
      }
      pair.append(element("dt", "", name), shown);
      this.figures.append(pair);
    }
  }

  over() {
    this.article.setAttribute("aria-busy", "false");
  }
}
