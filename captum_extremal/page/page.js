"use strict";
// Shows one area at a time: all that it needs stands in the list of all areas.
(() => {
  const viewer = document.getElementById("viewer");
  const slider = document.getElementById("area");
  const items = [...document.querySelectorAll("#areas > li")];
  const cursor = document.querySelector("#curve .cursor");

  function show() {
    const place = Number(slider.value);
    const item = items[place];
    for (const name of ["kept", "removed", "mask"]) {
      const target = viewer.querySelector(`img.${name}`);
      const source = item.querySelector(`img.${name}`);
      if (target && source) {
        target.src = source.src;
        target.alt = source.alt;
      }
    }
    for (const name of ["area", "kept", "removed", "note"]) {
      viewer.querySelector(`[data-show=${name}]`).textContent = item.dataset[name];
    }
    slider.setAttribute("aria-valuetext", item.dataset.spoken);
    cursor.setAttribute("transform", `translate(${item.dataset.x} 0)`);
    for (const dot of document.querySelectorAll("#curve .dot")) {
      dot.classList.toggle("current", Number(dot.dataset.place) === place);
    }
    items.forEach((other) => other.classList.toggle("current", other === item));
  }

  slider.addEventListener("input", show);
  document.documentElement.classList.add("script");
  viewer.hidden = false;
  show();
})();
