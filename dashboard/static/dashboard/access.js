// What unfold's pages lack for who uses the keyboard or hears the page: its clickable spans become buttons, its
// icons (words to a screen reader: "dock_to_right") are hidden or named, every field has a label.
"use strict";

(() => {
  const ICON = "material-symbols-outlined";
  const CLICKABLE = "[x-on\\:click]:not(button, input, select, textarea, a[href])";
  const NAMES = {
    close: "Close",
    computer: "Colours",
    dark_mode: "Colours",
    dock_to_right: "Menu",
    hub: "GPU Torrent",
    light_mode: "Colours",
    more_horiz: "More",
    more_vert: "More",
    visibility: "Show the password",
  };

  /** The icon's own word, as it stands in the page. */
  const iconOf = (element) => {
    const icon = element.classList.contains(ICON) ? element : element.querySelector(`.${ICON}`);
    return icon ? icon.textContent.trim() : "";
  };

  /** What an element says without its icons. */
  const textOf = (element) => {
    if (element.classList.contains(ICON)) return "";
    const copy = element.cloneNode(true);
    copy.querySelectorAll(`.${ICON}`).forEach((icon) => icon.remove());
    return copy.textContent.trim();
  };

  const isNamed = (element) => element.getAttribute("aria-label") || element.hasAttribute("aria-labelledby");

  const name = (element) => {
    if (isNamed(element) || textOf(element)) return;
    const icon = iconOf(element);
    const label = element.title || NAMES[icon] || icon.replaceAll("_", " ");
    if (label) element.setAttribute("aria-label", label);
  };

  const pressedByKey = (event) => {
    if (event.target !== event.currentTarget || (event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    event.currentTarget.click();
  };

  const asButton = (element) => {
    if (element.hasAttribute("role") || !element.textContent.trim()) return;
    element.setAttribute("role", "button");
    element.tabIndex = 0;
    element.addEventListener("keydown", pressedByKey);
    name(element);
  };

  /** Labels for the halves of a date with a time, and for boxes that choose rows of a table. */
  const labelField = (field) => {
    const isLabelled = [...(field.labels ?? [])].some((label) => textOf(label));
    if (isNamed(field) || (isLabelled && !field.hasAttribute("aria-label"))) return;
    const row = field.closest(".field-line, .form-row, .field-row, .group");
    const label = row?.querySelector("label")?.textContent.replace("*", "").trim();
    const half = { vDateField: "date", vTimeField: "time" }[field.classList[0]] ?? "";
    const said = [label, half].filter(Boolean).join(", ") || field.placeholder || field.name.replaceAll("_", " ");
    field.setAttribute("aria-label", said);
  };

  /** What scrolls is a region by the name of what is in it: several are on a page, all called the same. */
  const nameRegion = (region) => {
    const heading = region.closest(".inline-group, fieldset")?.querySelector("h2");
    const said = region.closest("#nav-sidebar") ? "Menu" : heading && textOf(heading);
    region.setAttribute("aria-label", said || "Rows");
  };

  const mend = () => {
    const main = document.getElementById("main") ?? document.getElementById("page");
    if (main && !document.querySelector("main, [role=main]")) main.setAttribute("role", "main");
    document.querySelectorAll(CLICKABLE).forEach(asButton);
    document.querySelectorAll("a[href], button").forEach(name);
    document.querySelectorAll(`.${ICON}:not([role])`).forEach((icon) => icon.setAttribute("aria-hidden", "true"));
    document.querySelectorAll("input:not([type=hidden], [type=submit]), select, textarea").forEach(labelField);
    document.querySelectorAll(".select2-selection__rendered[role]:not([aria-label])").forEach((shown) => {
      const label = shown.closest(".select2")?.previousElementSibling?.labels?.[0];
      if (label) shown.setAttribute("aria-label", [label.textContent.trim(), shown.title].filter(Boolean).join(": "));
    });
    document.querySelectorAll("[role=region][aria-label='scrollable content']").forEach(nameRegion);
    document.querySelectorAll(".help-tooltip[aria-label]:not([role])").forEach((hint) => {
      hint.setAttribute("role", "img");
    });
  };

  document.addEventListener("DOMContentLoaded", mend);
  // Django's own scripts build their pickers on load, some of them after us.
  window.addEventListener("load", () => setTimeout(mend));
})();
