"use strict";
const root = document.documentElement;
const $ = (selector, from = document) => from.querySelector(selector);

// Light and dark: the reader's choice wins over the system's.
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
$("#theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a reader may forbid storage */ }
});

// The contents on small screens.
$("#menu").addEventListener("click", () => {
  const open = document.body.classList.toggle("menu-open");
  $("#menu").setAttribute("aria-expanded", String(open));
});
const current = $('.sidebar [aria-current="page"]');
if (current) $(".sidebar").scrollTop = Math.max(0, current.offsetTop - 200);

// Copy buttons.
for (const block of document.querySelectorAll(".code")) {
  const button = document.createElement("button");
  button.type = "button"; button.className = "copy"; button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText($("code", block).textContent); button.textContent = "Copied"; }
    catch { button.textContent = "Press Ctrl-C"; getSelection().selectAllChildren($("code", block)); }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  block.append(button);
}

// Search: every word must occur; words in titles count more.
const box = $("#search"), list = $("#found");
const score = (section, words) => {
  const title = section.title.toLowerCase(), text = section.text.toLowerCase();
  let sum = 0;
  for (const word of words) {
    if (title.includes(word)) sum += 10;
    else if (text.includes(word)) sum += 1;
    else return 0;
  }
  return sum;
};
const excerpt = (text, word) => {
  const at = text.toLowerCase().indexOf(word), from = Math.max(0, at - 30);
  return at < 0 ? text.slice(0, 80) : (from ? "…" : "") + text.slice(from, at + 60) + "…";
};
function find() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  list.hidden = !words.length;
  const hits = words.length ? (window.bookSections || []).map(s => [score(s, words), s]).filter(h => h[0]) : [];
  hits.sort((a, b) => b[0] - a[0]);
  list.replaceChildren(...hits.slice(0, 12).map(([, section]) => {
    const item = document.createElement("li"), link = document.createElement("a");
    const title = document.createElement("b"), page = document.createElement("small"), text = document.createElement("span");
    link.href = box.dataset.root + section.url;
    title.textContent = section.title; page.textContent = section.page; text.textContent = excerpt(section.text, words[0]);
    link.append(title, page, text); item.append(link);
    return item;
  }));
  if (words.length && !hits.length) { const none = document.createElement("li"); none.textContent = "Nothing found"; list.append(none); }
}
box.addEventListener("input", find);
document.addEventListener("keydown", event => {
  if (event.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); box.focus(); }
  if (event.key === "Escape") { box.value = ""; find(); }
});

// Mark the section that is being read.
const entries = new Map([...document.querySelectorAll(".here a")].map(a => [a.hash.slice(1), a]));
const watch = new IntersectionObserver(seen => {
  for (const one of seen) if (one.isIntersecting) {
    for (const a of entries.values()) a.removeAttribute("aria-current");
    entries.get(one.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-10% 0px -75% 0px" });
for (const id of entries.keys()) { const target = document.getElementById(id); if (target) watch.observe(target); }
