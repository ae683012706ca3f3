"use strict";
// leaf.player(clip, label): an element that plays a clip of leaf.report.audio. Its waveform can be clicked, dragged and
// stepped through: space plays and pauses, arrows move by a second, Home and End go to the ends. One player sounds at a
// time, and one that is hidden or taken out of the page falls silent.
leaf.player = (() => {
  const { element, svg } = leaf;
  const PLAY = "M4 2.5v11l9-5.5z";
  const PAUSE = "M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z";
  const STEPS = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }; // seconds
  let sounding = null;

  const icon = (shape) => svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: shape }));

  function clock(seconds) {
    if (seconds < 60) return seconds.toFixed(1);
    return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  }
  const spoken = (seconds) => clock(seconds) + (seconds < 60 ? " s" : "");

  function waveform(kind, peaks) {
    const bar = (peak, i) => `M${i + 0.5} ${100 - Math.max(peak, 2)}V${100 + Math.max(peak, 2)}`;
    const box = { viewBox: `0 0 ${peaks.length} 200`, preserveAspectRatio: "none", "aria-hidden": "true" };
    return svg("svg", { class: kind, ...box }, svg("path", { d: peaks.map(bar).join("") }));
  }

  class Player {
    constructor(clip, label) {
      this.clip = clip;
      this.label = label;
      this.audio = element("audio", { preload: "metadata", src: clip.src });
      this.button = element("button", { type: "button", "aria-label": `play ${label}` }, icon(PLAY));
      this.past = waveform("past", clip.peaks);
      this.head = element("b");
      this.wave = this.slider();
      // Room for the longest text, so that the waveform keeps its width while it plays.
      const longest = `${clock(clip.kept)} / ${spoken(clip.kept)}`.length;
      this.time = element("span.time", { style: `min-width: ${longest}ch` });
      this.note = element("span.note", { role: "status" });
      if (clip.kept < clip.seconds) {
        this.note.textContent = `only the first ${spoken(clip.kept)} of ${spoken(clip.seconds)} are in this page`;
      }
      const parts = [this.button, this.wave, this.time, this.note, this.audio];
      this.element = element("div.player", { role: "group", "aria-label": label }, ...parts);
      this.listenToSound();
      this.listenToPointer();
      this.wave.addEventListener("keydown", (event) => this.keyed(event));
      this.button.addEventListener("click", () => this.toggle());
      this.paint();
    }

    slider() {
      const { clip, label, past, head } = this;
      const range = { "aria-valuemin": "0", "aria-valuemax": clip.kept };
      const joins = clip.joins.map((second) => element("i", { style: `left: ${(100 * second) / clip.kept}%` }));
      const attributes = { role: "slider", tabindex: "0", "aria-label": `position in ${label}`, ...range };
      return element("div.wave", attributes, waveform("rest", clip.peaks), past, head, ...joins);
    }

    // The encoder may add a little silence at the end, so the clip's own length is the measure.
    position() {
      return Math.min(this.audio.currentTime, this.clip.kept);
    }

    paint() {
      const [at, end] = [this.position(), this.clip.kept];
      const share = (100 * at) / end;
      this.past.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      this.head.style.left = `${share}%`;
      this.head.hidden = share === 0;
      this.time.textContent = `${clock(at)} / ${spoken(end)}`;
      this.wave.setAttribute("aria-valuenow", at.toFixed(1));
      this.wave.setAttribute("aria-valuetext", `${spoken(at)} of ${spoken(end)}`);
    }

    // Paint at every frame for as long as it plays.
    follow() {
      this.paint();
      if (!this.element.isConnected || this.element.closest("[hidden]")) this.audio.pause();
      else if (!this.audio.paused) requestAnimationFrame(() => this.follow());
    }

    seek(second) {
      this.audio.currentTime = Math.max(0, Math.min(this.clip.kept, second));
      this.paint();
    }

    toggle() {
      if (!this.audio.paused) {
        this.audio.pause();
        return;
      }
      if (this.position() >= this.clip.kept) this.seek(0);
      // A pause before the sound has begun aborts it, which is no failure.
      this.audio.play().catch((error) => {
        if (error.name !== "AbortError") this.failed();
      });
    }

    failed() {
      this.note.textContent = "this browser cannot play the recording";
    }

    show(shape, word) {
      this.button.replaceChildren(icon(shape));
      this.button.setAttribute("aria-label", `${word} ${this.label}`);
      this.paint();
    }

    listenToSound() {
      const { audio } = this;
      audio.addEventListener("play", () => {
        if (sounding && sounding !== audio) sounding.pause();
        sounding = audio;
        this.show(PAUSE, "pause");
        this.follow();
      });
      audio.addEventListener("pause", () => this.show(PLAY, "play"));
      // A page in the background has no frames to follow.
      audio.addEventListener("timeupdate", () => {
        if (audio.paused || document.hidden) this.follow();
      });
      audio.addEventListener("seeked", () => this.paint());
      audio.addEventListener("error", () => this.failed());
    }

    listenToPointer() {
      const { wave } = this;
      const seekTo = (event) => {
        const box = wave.getBoundingClientRect();
        this.seek(((event.clientX - box.left) / box.width) * this.clip.kept);
      };
      wave.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        wave.setPointerCapture(event.pointerId);
        seekTo(event);
      });
      wave.addEventListener("pointermove", (event) => {
        if (wave.hasPointerCapture(event.pointerId)) seekTo(event);
      });
    }

    keyed(event) {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key in STEPS) this.seek(this.position() + STEPS[event.key]);
      else if (event.key === "Home") this.seek(0);
      else if (event.key === "End") this.seek(this.clip.kept);
      else if (event.key === " ") this.toggle();
      else return;
      event.preventDefault();
      event.stopPropagation(); // the section has keys of its own
    }
  }

  return (clip, label = "recording") => new Player(clip, label).element;
})();
