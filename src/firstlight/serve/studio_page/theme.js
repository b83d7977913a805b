// Before the first paint: the colours that were chosen, or the system's.
(() => {
  let kept = null;
  try { kept = localStorage.getItem("studio.theme"); } catch { /* storage may be forbidden: the system's then */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
