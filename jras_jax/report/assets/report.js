"use strict";

// Each evidence panel: a range input shows one slice; checkboxes hide contour layers.
for (const panel of document.querySelectorAll(".panel")) {
  const slider = panel.querySelector("input[type=range]");
  const output = panel.querySelector("output");
  const slices = panel.querySelectorAll(".slice");
  const bars = panel.querySelectorAll(".strip .bar");

  const show = (index) => {
    slices.forEach((slice, i) => { slice.hidden = i !== index; });
    bars.forEach((bar, i) => { bar.classList.toggle("current", i === index); });
    output.textContent = `${index + 1} of ${slices.length}`;
    slider.setAttribute("aria-valuetext", `Slice ${index + 1} of ${slices.length}`);
  };
  slider.addEventListener("input", () => show(Number(slider.value) - 1));
  bars.forEach((bar, i) => bar.addEventListener("click", () => { slider.value = i + 1; show(i); }));
  for (const box of panel.querySelectorAll("input[data-layer]")) {
    const apply = () => panel.classList.toggle(`no-${box.dataset.layer}`, !box.checked);
    box.addEventListener("change", apply);
    apply();
  }
  const blink = panel.querySelector("input[data-blink]");
  if (blink) {
    const apply = () => panel.classList.toggle("blink", blink.checked);
    blink.addEventListener("change", apply);
    apply();
  }
  // A reload keeps the slider where the reader left it: show what it says.
  show(Number(slider.value) - 1);
}

// A table that is wider than its box says so; one that fits is no stop for the keyboard.
const scrolls = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("scrolls", wide);
    box.previousElementSibling.hidden = !wide;
    if (wide) { box.setAttribute("tabindex", "0"); } else { box.removeAttribute("tabindex"); }
  }
};
addEventListener("resize", scrolls);
document.querySelectorAll("details").forEach((d) => d.addEventListener("toggle", scrolls));
scrolls();

// On paper nothing can be opened: print what is folded away, then fold it again.
let opened = [];
window.addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((d) => { d.open = true; });
});
window.addEventListener("afterprint", () => { opened.forEach((d) => { d.open = false; }); });
