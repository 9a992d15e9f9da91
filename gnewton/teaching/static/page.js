/* On a page of the book: draw every figure once the page is there. */
(function (root) {
  "use strict";
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", root.gnewton.start);
  else root.gnewton.start();
})(globalThis);
