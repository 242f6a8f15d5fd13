// Follows one update: every event and every bit of progress fetches the part of the page that changes, one fetch at a time.
"use strict";
(() => {
  const live = document.getElementById("live");
  const announcement = document.getElementById("announcement");
  const state = () => document.getElementById("state").dataset;
  const finished = () => state().finished === "yes";
  let fetching = false, again = false, stream;

  // Makes one element like another by changing what differs between them and nothing else: what is focused stays so, a button
  // that is pressed down is let go of where it was pressed, typed text stays typed. What a reader opened or closed stays as it is.
  const liken = (shown, fresh) => {
    if (shown.isEqualNode(fresh)) return;
    if (shown.nodeName !== fresh.nodeName || shown.id !== fresh.id || shown.nodeType !== Node.ELEMENT_NODE) {
      shown.replaceWith(fresh);
      return;
    }
    for (const { name } of [...shown.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) shown.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (name !== "open" && shown.getAttribute(name) !== value) shown.setAttribute(name, value);
    const before = [...shown.childNodes], after = [...fresh.childNodes];
    before.slice(after.length).forEach((gone) => gone.remove());
    after.forEach((child, place) => place < before.length ? liken(before[place], child) : shown.append(child));
  };

  const show = (html) => {
    const before = state().state;
    liken(document.getElementById("state"), new DOMParser().parseFromString(html, "text/html").getElementById("state"));
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
