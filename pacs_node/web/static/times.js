"use strict";
// Times in the zone of whoever looks; the server writes UTC, which stays in the tooltip.
(() => {
  const two = (value) => String(value).padStart(2, "0");
  const day = (at) => `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const clock = (at) => `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  const today = day(new Date(document.body.dataset.now));
  for (const shown of document.querySelectorAll("time[datetime]")) {
    const at = new Date(shown.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    shown.textContent = day(at) === today ? clock(at) : `${day(at)} ${clock(at)}`;
  }
  const zone = document.getElementById("zone");
  if (zone) zone.textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
})();
