"use strict";
// Loads the page again every few seconds while somebody looks at it and does nothing else with it.
(() => {
  const seconds = Number(document.body.dataset.refresh);
  const button = document.getElementById("updates");
  if (!seconds || !button) return;
  const key = "updates-paused";
  const paused = () => sessionStorage.getItem(key) === "yes";
  const show = () => {
    button.hidden = false;
    button.setAttribute("aria-pressed", String(paused()));
    button.textContent = paused() ? "Updates paused" : `Updates every ${seconds} s`;
  };
  button.addEventListener("click", () => {
    sessionStorage.setItem(key, paused() ? "no" : "yes");
    show();
  });
  const busy = () =>
    paused() ||
    document.hidden ||
    document.querySelector("input:focus, details[open]:not(.examined)") !== null ||
    String(document.getSelection()) !== "";
  // the mark tells the server that nobody clicked: it keeps no session alive
  const again = new URL(location.href);
  again.searchParams.set("auto", "1");
  setInterval(() => { if (!busy()) location.replace(again); }, seconds * 1000);
  show();
})();
