/* On a page of the book: draw every figure once the page is there, let the keyboard scroll what is wider than the page, and
   print in the light theme: paper is white. */
(function (root) {
  "use strict";
  const WIDE = '.bd-article pre, .cell_output:has(> img.several-panels), mjx-container[display="true"]';
  function reach() {
    for (const box of document.querySelectorAll(WIDE)) {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", root.gnewton.start);
  else root.gnewton.start();
  const { dataset } = document.documentElement;
  let worn;
  root.addEventListener("beforeprint", () => { worn = dataset.theme; dataset.theme = "light"; });
  root.addEventListener("afterprint", () => { dataset.theme = worn; });
  root.addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true); // what a fold has shown
  root.addEventListener("load", () => { reach(); root.MathJax?.startup?.promise?.then(reach); });
})(globalThis);
