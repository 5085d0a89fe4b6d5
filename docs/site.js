// Whatever scrolls sideways is reached with the keyboard, and the button that copies is no landmark.
const mend = () => {
  for (const one of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, .md-content p:has(> img)")) {
    if (one.scrollWidth > one.clientWidth) one.tabIndex = 0;
    else one.removeAttribute("tabindex");
  }
  for (const one of document.querySelectorAll("nav.md-code__nav")) one.setAttribute("role", "none");
};
new MutationObserver(mend).observe(document.querySelector(".md-content"), { childList: true, subtree: true });
addEventListener("resize", mend);
addEventListener("load", mend); // pictures have their size then
mend();
