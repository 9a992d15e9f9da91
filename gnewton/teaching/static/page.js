/* On a page of the book: draw every figure once the page is there, and let the keyboard scroll a picture that is too wide. */
(function (root) {
  "use strict";
  function begin() {
    root.gnewton.start();
    for (const box of document.querySelectorAll(".cell_output:has(> img.several-panels)")) new ResizeObserver(() => {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }).observe(box);
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})(globalThis);
