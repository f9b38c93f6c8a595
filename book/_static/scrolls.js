/* Marks the boxes that can be scrolled further to the right with the class `more-right`: book.css fades their right
   edge. Without this script the boxes scroll all the same. */
(() => {
  const BOXES = `pre, .output.text_html, .diagram, .pst-scrollable-table-container, div.math, mjx-container[display="true"]`;

  const mark = (box) => {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(box).overflowX);
    const hidden = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("more-right", scrolls && hidden > 1.5);
  };

  const seen = new ResizeObserver((changes) => changes.forEach((change) => mark(change.target)));
  const watch = () => document.querySelectorAll("article " + BOXES.replaceAll(", ", ", article ")).forEach((box) => seen.observe(box));

  // The event of a scrolling box does not bubble, but it can be captured.
  document.addEventListener("scroll", (event) => event.target.matches?.(BOXES) && mark(event.target), { capture: true, passive: true });
  watch();
  // Formulae become boxes when they are set; a box keeps its size when a font makes its content wider.
  window.addEventListener("load", async () => {
    await Promise.all([window.MathJax?.startup?.promise, document.fonts.ready]);
    watch();
    document.querySelectorAll(BOXES).forEach(mark);
  });
})();
