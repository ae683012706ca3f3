// leaf.player(clip, label): an element that plays a clip of leaf.report.audio, with its waveform to click, drag or step
// through: space plays and pauses, arrows move by a second, Home and End go to the ends. One player sounds at a time; one
// that is taken out of the page or hidden falls silent.
(() => {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const style = document.createElement("style");
  style.textContent = `
    .player { display: flex; flex-wrap: wrap; align-items: center; gap: .2rem .6rem; max-width: 34rem; }
    .player button { width: 2.25rem; height: 2.25rem; padding: 0; border-radius: 50%; flex: none; display: grid; place-items: center; }
    .player button svg { width: 1rem; height: 1rem; fill: currentColor; }
    .player .wave { position: relative; flex: 1; min-width: 7rem; height: 2.25rem; cursor: pointer; touch-action: pan-y; border-radius: 4px; }
    .player .wave svg { position: absolute; inset: 0; width: 100%; height: 100%; pointer-events: none; }
    .player .wave path { stroke-width: .62; fill: none; }
    .player .wave .rest path { stroke: var(--dim); opacity: .55; }
    .player .wave .past path { stroke: var(--accent); }
    .player .wave i { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px dotted var(--line); pointer-events: none; }
    .player .wave b { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: var(--accent); pointer-events: none; }
    .player .time { font-variant-numeric: tabular-nums; color: var(--dim); font-size: .85rem; text-align: right; }
    .player .note { flex-basis: 100%; color: var(--dim); font-size: .85rem; }
    .player .note:empty { display: none; }`;
  document.head.append(style);

  const drawn = (name, attributes, ...children) => {
    const made = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const icon = (shape) => drawn("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, drawn("path", { d: shape }));
  const PLAY = "M4 2.5v11l9-5.5z", PAUSE = "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z";
  const clock = (seconds) => (seconds < 60 ? seconds.toFixed(1) : `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`);
  const spell = (seconds) => clock(seconds) + (seconds < 60 ? " s" : "");
  let sounding = null;

  leaf.player = (clip, label = "recording") => {
    const audio = leaf.element("audio", { preload: "metadata", src: clip.src });
    const button = leaf.element("button", { type: "button", "aria-label": `play ${label}` }, icon(PLAY));
    const bars = clip.peaks.map((peak, i) => `M${i + 0.5} ${100 - Math.max(peak, 2)}V${100 + Math.max(peak, 2)}`).join("");
    const layer = (kind) => drawn("svg", {
      class: kind, viewBox: `0 0 ${clip.peaks.length} 200`, preserveAspectRatio: "none", "aria-hidden": "true",
    }, drawn("path", { d: bars }));
    const past = layer("past"), head = leaf.element("b");
    const wave = leaf.element(
      "div.wave",
      { role: "slider", tabindex: "0", "aria-label": `position in ${label}`, "aria-valuemin": "0", "aria-valuemax": clip.kept },
      layer("rest"), past, head,
      ...clip.joins.map((second) => leaf.element("i", { style: `left: ${(100 * second) / clip.kept}%` })),
    );
    // Room for its longest text, so that the waveform keeps its width while it plays.
    const time = leaf.element("span.time", { style: `min-width: ${`${clock(clip.kept)} / ${spell(clip.kept)}`.length}ch` });
    const note = leaf.element("span.note", { role: "status" });
    if (clip.kept < clip.seconds) note.textContent = `the first ${spell(clip.kept)} of ${spell(clip.seconds)} were kept; the rest was cut from this page`;
    const player = leaf.element("div.player", { role: "group", "aria-label": label }, button, wave, time, note, audio);

    // A clip's encoder may add a little silence at its end: the waveform's own length is the measure.
    const at = () => Math.min(audio.currentTime, clip.kept);
    const paint = () => {
      const share = (100 * at()) / clip.kept;
      past.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      head.style.left = `${share}%`;
      head.hidden = share === 0;
      time.textContent = `${clock(at())} / ${spell(clip.kept)}`;
      wave.setAttribute("aria-valuenow", at().toFixed(1));
      wave.setAttribute("aria-valuetext", `${spell(at())} of ${spell(clip.kept)}`);
    };
    const follow = () => {
      paint();
      if (!player.isConnected || player.closest("[hidden]")) audio.pause();
      else if (!audio.paused) requestAnimationFrame(follow);
    };
    const seek = (second) => {
      audio.currentTime = Math.max(0, Math.min(clip.kept, second));
      paint();
    };
    const failed = () => { note.textContent = "this browser cannot play the recording"; };
    const toggle = () => {
      if (!audio.paused) return audio.pause();
      if (at() >= clip.kept) seek(0);
      return audio.play().catch((error) => { if (error.name !== "AbortError") failed(); });
    };
    const show = (shape, word) => {
      button.replaceChildren(icon(shape));
      button.setAttribute("aria-label", `${word} ${label}`);
      paint();
    };
    audio.addEventListener("play", () => {
      if (sounding && sounding !== audio) sounding.pause();
      sounding = audio;
      show(PAUSE, "pause");
      follow();
    });
    audio.addEventListener("pause", () => show(PLAY, "play"));
    audio.addEventListener("timeupdate", () => { if (audio.paused || document.hidden) follow(); });
    audio.addEventListener("seeked", paint);
    audio.addEventListener("error", failed);
    button.addEventListener("click", toggle);

    const from = (event) => {
      const box = wave.getBoundingClientRect();
      seek(((event.clientX - box.left) / box.width) * clip.kept);
    };
    wave.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      wave.setPointerCapture(event.pointerId);
      from(event);
    });
    wave.addEventListener("pointermove", (event) => { if (wave.hasPointerCapture(event.pointerId)) from(event); });
    wave.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key in moves) seek(at() + moves[event.key]);
      else if (event.key === "Home") seek(0);
      else if (event.key === "End") seek(clip.kept);
      else if (event.key === " ") toggle();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    paint();
    return player;
  };
})();
