// Keys for what links and fields do as well. Nothing here is needed: every page works without it.
"use strict";

const typing = (element) => /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);

// Rows of a list, or steps of a run, one after the other.
function move(by) {
  const items = [...document.querySelectorAll("a.item, .step[id], table:not(.list) td a, tbody th.link a")];
  if (!items.length) return;
  const at = items.findIndex((item) => item === document.activeElement || item.contains(document.activeElement));
  const next = items[Math.min(items.length - 1, Math.max(0, at < 0 ? (by > 0 ? 0 : items.length - 1) : at + by))];
  next.focus();
  next.scrollIntoView({ block: next.matches(".step") ? "start" : "nearest" });
}

const follow = (selector) => document.querySelector(selector)?.click();

const keys = {
  j: () => move(1),
  k: () => move(-1),
  n: () => follow("a[rel=next]"),
  p: () => follow("a[rel=prev]"),
  l: () => document.getElementById("value")?.focus(),
  "/": () => {
    const field = document.getElementById("q");
    if (field) field.focus();
    else location.assign("/");
  },
};

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && typing(event.target)) event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
  const act = keys[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});
