"use strict";
// Scrolls through the slices of a nodule. The picture holds all slices, one below the other, and each in
// every window, side by side; only a part of it is shown. Without this script the key image stands alone.
(() => {
  const begin = (viewer) => {
    const slices = JSON.parse(viewer.dataset.slices);
    const rows = Number(viewer.dataset.rows), columns = Number(viewer.dataset.columns);
    const find = (selector) => viewer.querySelector(selector);
    const picture = find("image"), part = find(".grey"), outline = find(".outline");
    const slider = find("input"), words = find("output"), contour = find(".contour"), box = find("svg.slice");
    const windows = [...viewer.querySelectorAll(".window")];
    // without any outline it is a place where no nodule is
    const outlined = slices.some(([, , path]) => path);
    let shown = 0;

    const show = () => {
      const at = Number(slider.value), [index, z, path] = slices[at];
      part.setAttribute("viewBox", `${shown * columns} ${at * rows} ${columns} ${rows}`);
      const wanted = contour.getAttribute("aria-pressed") === "true";
      outline.setAttribute("d", wanted ? path : "");
      const total = viewer.dataset.total;
      const text = `Slice ${index + 1}${total ? ` of ${total}` : ""}, z ${z.toFixed(1).replace("-", "\u2212")} mm` +
        (path || !outlined ? "" : ", beyond the nodule");
      words.textContent = text;
      slider.setAttribute("aria-valuetext", text);
      box.setAttribute("aria-label", `${viewer.getAttribute("aria-label")}: ${text}` +
        (path && wanted ? ", with its outline" : ""));
    };
    const move = (by) => {
      slider.value = String(Number(slider.value) + by);
      show();
    };
    const draw = (wanted) => {
      contour.setAttribute("aria-pressed", String(wanted));
      show();
    };
    const lit = (number) => {
      shown = number;
      windows.forEach((button, at) => button.setAttribute("aria-pressed", String(at === number)));
      show();
    };
    // two dates of one nodule are looked at alike
    const both = viewer.closest(".sides");
    const alike = (wanted, number) => {
      if (both === null) {
        draw(wanted);
        lit(number);
      } else both.dispatchEvent(new CustomEvent("alike", { detail: { wanted, number } }));
    };
    both?.addEventListener("alike", (event) => {
      draw(event.detail.wanted);
      lit(event.detail.number);
    });
    const toggle = () => alike(contour.getAttribute("aria-pressed") !== "true", shown);
    const choose = (number) => alike(contour.getAttribute("aria-pressed") === "true", number);

    slider.addEventListener("input", show);
    contour.addEventListener("click", toggle);
    windows.forEach((button, at) => button.addEventListener("click", () => choose(at)));
    viewer.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -5, PageDown: 5 };
      if (event.key in steps) move(steps[event.key]);
      else if (event.key === "Home") move(-slices.length);
      else if (event.key === "End") move(slices.length);
      else if (event.key.toLowerCase() === "c") toggle();
      else if (event.key.toLowerCase() === "w") choose((shown + 1) % windows.length);
      else return;
      event.preventDefault();
    });
    box.addEventListener("wheel", (event) => {
      if (event.ctrlKey || !event.deltaY) return;
      event.preventDefault();
      move(Math.sign(event.deltaY));
    }, { passive: false });

    // a drag to the side; up and down stay with the page
    let held = null;
    box.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, at: Number(slider.value) };
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointermove", (event) => {
      if (held === null) return;
      const far = (event.clientX - held.x) / box.clientWidth;
      slider.value = String(Math.round(held.at + far * slices.length));
      show();
    });
    for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => { held = null; });

    picture.addEventListener("error", () => {
      box.setAttribute("hidden", "");
      find(".trouble").hidden = false;
    });
    viewer.hidden = false;
    show();
    // it is asked for, and noted as looked at, when it comes into sight
    new IntersectionObserver((entries, observer) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      observer.disconnect();
      picture.setAttribute("href", viewer.dataset.src);
    }, { rootMargin: "100px" }).observe(viewer);
  };
  document.querySelectorAll(".viewer").forEach(begin);
})();
