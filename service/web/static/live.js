// Follows one update: every event and every bit of progress fetches the part of the page that changes, one fetch at a time.
"use strict";
(() => {
  const live = document.getElementById("live");
  const announcement = document.getElementById("announcement");
  const state = () => document.getElementById("state").dataset;
  const finished = () => state().finished === "yes";
  let fetching = false, again = false, stream;

  const show = (html) => {
    const focused = document.activeElement && document.activeElement.id;
    const typed = live.querySelector("#reason") && live.querySelector("#reason").value;
    const before = state().state;
    live.innerHTML = html;
    if (typed && live.querySelector("#reason")) live.querySelector("#reason").value = typed;
    if (focused && focused !== document.activeElement.id) document.getElementById(focused)?.focus();
    if (state().state !== before) announcement.textContent = state().words;
  };

  const refresh = async () => {
    if (fetching) { again = true; return; }
    fetching = true;
    try {
      do {
        again = false;
        const answer = await fetch(live.dataset.now);
        if (answer.redirected || answer.status === 404) { location.reload(); return; }
        if (answer.ok) show(await answer.text());
      } while (again);
    } finally {
      fetching = false;
    }
    if (finished()) stream.close();
  };

  const changed = () => refresh().catch(() => {}); // a lost connection: the stream comes back by itself
  const listen = () => {
    stream = new EventSource(`${live.dataset.stream}?after=${state().after}`);
    for (const type of ["queued", "training", "evaluating", "awaiting_approval", "promoted", "rejected", "failed", "cancelled",
      "cancel_requested", "lease_expired", "progress"]) {
      stream.addEventListener(type, changed);
    }
    // Told to come no more: the update has ended, or the session has, or the service is too busy just now.
    stream.addEventListener("error", () => {
      if (stream.readyState !== EventSource.CLOSED) return;
      changed().then(() => { if (!finished()) setTimeout(listen, 5000); });
    });
  };
  listen();
})();
