// Make an element's children what some HTML says, touching only what differs: focus, selection and open menus stay.
// The HTML is the server's own templates'; what others named is escaped there.

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined);

const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

// Text that the page writes itself, see ago.js.
const isOurs = (element) => element.matches("time[data-ago], [data-origin]");

function patchAttributes(old, wanted) {
  for (const { name } of [...old.attributes]) {
    if (!wanted.hasAttribute(name) && !(name === "title" && isOurs(old))) old.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

function patch(old, wanted) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  patchAttributes(old, wanted);
  if (!isOurs(old)) patchChildren(old, wanted);
}

function patchChildren(parent, wanted) {
  const keyed = new Map([...parent.children].filter(keyOf).map((child) => [keyOf(child), child]));
  let cursor = parent.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = keyOf(child);
    const found = key === undefined ? cursor && alike(cursor, child) && cursor : keyed.get(key);
    if (!found || !alike(found, child)) {
      parent.insertBefore(child, cursor);
      continue;
    }
    if (found === cursor) cursor = cursor.nextSibling;
    else parent.insertBefore(found, cursor);
    patch(found, child);
  }
  while (cursor) {
    const next = cursor.nextSibling;
    cursor.remove();
    cursor = next;
  }
}

export function morph(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  patchChildren(element, template.content);
}
