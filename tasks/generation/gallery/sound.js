"use strict";
// Notes played by the page itself, where no sound was rendered: struck strings and simple drums, mono.
const orchestrionSound = (() => {
  const RATE = 24000;
  const MAX_SECONDS = 900; // of one rendering: 86 MB
  const TAIL = 0.6;
  const N_TABLE = 2048;
  const MAX_PARTIALS = 12;
  const tables = new Map();
  const hits = new Map();
  let context = null;
  let volume = null;
  let loaded = null; // the one player that keeps its samples

  function table(nPartials) {
    if (!tables.has(nPartials)) {
      const wave = new Float32Array(N_TABLE);
      for (let k = 1; k <= nPartials; k++) {
        const gain = k ** -1.3;
        for (let i = 0; i < N_TABLE; i++) wave[i] += gain * Math.sin((2 * Math.PI * k * i) / N_TABLE);
      }
      tables.set(nPartials, wave);
    }
    return tables.get(nPartials);
  }

  function addTone(mix, onset, end, pitch, gain) {
    const frequency = 440 * 2 ** ((pitch - 69) / 12);
    const bright = table(Math.max(1, Math.min(MAX_PARTIALS, Math.floor((0.45 * RATE) / frequency))));
    const dull = table(1);
    const step = (frequency * N_TABLE) / RATE;
    const fade = Math.exp(-1 / (RATE * 0.9 * 2 ** ((60 - pitch) / 24)));
    const dim = Math.exp(-1 / (RATE * 0.35));
    const release = Math.exp(-1 / (RATE * 0.05));
    const nAttack = Math.round(0.004 * RATE);
    const first = Math.round(onset * RATE);
    const held = Math.max(1, Math.round((end - onset) * RATE));
    const stop = Math.min(mix.length - first, held + Math.round(0.25 * RATE));
    let loud = gain * 2 ** ((60 - pitch) / 48);
    let light = 1;
    let phase = 0;
    for (let i = 0; i < stop && loud > 1e-5; i++) {
      const at = phase & (N_TABLE - 1);
      mix[first + i] += loud * Math.min(1, i / nAttack) * (light * bright[at] + (1 - light) * dull[at]);
      phase += step;
      loud *= i < held ? fade : release;
      light *= dim;
    }
  }

  function noise(n) {
    const samples = new Float32Array(n);
    let state = 12345;
    for (let i = 0; i < n; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      samples[i] = state / 2147483648;
    }
    return samples;
  }

  function drum(key) {
    if (hits.has(key)) return hits.get(key);
    const isKick = key === 35 || key === 36;
    const isSnare = key >= 37 && key <= 40;
    const isHat = key === 42 || key === 44 || key === 46;
    const isCymbal = [49, 51, 52, 53, 55, 57, 59].includes(key);
    const seconds = isCymbal ? 0.9 : key === 46 ? 0.4 : isHat ? 0.08 : 0.3;
    const hit = noise(Math.round(seconds * RATE));
    const hertz = isKick ? 50 : 60 * 2 ** ((key - 36) / 12);
    let before = 0;
    let angle = 0;
    for (let i = 0; i < hit.length; i++) {
      const t = i / RATE;
      const high = hit[i] - before; // the difference of neighbours lets only the hiss through
      before = hit[i];
      angle += (2 * Math.PI * hertz * (1 + (isKick ? 2 : 0.4) * Math.exp(-t / 0.03))) / RATE;
      const hiss = isSnare ? 0.5 * before : isHat || isCymbal ? 0.3 * high : 0.05 * before;
      const body = isHat || isCymbal ? 0 : (isSnare ? 0.3 : 0.9) * Math.sin(angle);
      hit[i] = (hiss + body) * Math.exp((-6.9 * t) / seconds);
    }
    hits.set(key, hit);
    return hit;
  }

  function pedalled(end, pedal) {
    for (let i = 0; i < pedal.onset.length; i++) if (pedal.onset[i] <= end && end < pedal.end[i]) return pedal.end[i];
    return end;
  }

  /** Samples of {notes, pedal} in milliseconds, -0.8 to 0.8. */
  function render({ notes, pedal }, seconds) {
    const mix = new Float32Array(Math.ceil((Math.min(seconds, MAX_SECONDS) + TAIL) * RATE));
    for (let i = 0; i < notes.onset.length; i++) {
      const gain = 0.03 + 0.97 * (notes.velocity[i] / 127) ** 1.7;
      const onset = notes.onset[i] / 1000;
      if (notes.drum[i]) {
        const hit = drum(notes.pitch[i]);
        const first = Math.round(onset * RATE);
        const n = Math.min(hit.length, mix.length - first);
        for (let j = 0; j < n; j++) mix[first + j] += gain * hit[j];
      } else {
        addTone(mix, onset, pedalled(notes.end[i], pedal) / 1000, notes.pitch[i], gain);
      }
    }
    let peak = 0;
    for (let i = 0; i < mix.length; i++) peak = Math.max(peak, Math.abs(mix[i]));
    if (peak > 0) for (let i = 0; i < mix.length; i++) mix[i] *= 0.8 / peak;
    return mix;
  }

  /** Plays notes as a media element plays a file; `read` returns {notes, pedal}. */
  class NotePlayer {
    constructor(read, seconds) {
      Object.assign(this, { read, seconds, at: 0, buffer: null, source: null, startedAt: 0, onended: null });
    }

    get currentTime() {
      const passed = this.source ? context.currentTime - this.startedAt : 0;
      return Math.min(this.at + passed, this.seconds + TAIL);
    }

    set currentTime(seconds) {
      const wasPlaying = this.source !== null;
      this.pause();
      this.at = seconds;
      if (wasPlaying) this.start();
    }

    async play(loudness) {
      if (!context) {
        context = new AudioContext();
        volume = context.createGain();
        volume.connect(context.destination);
      }
      this.volume = loudness;
      await context.resume();
      if (!this.buffer) {
        if (loaded) loaded.buffer = null;
        loaded = this;
        const samples = render(this.read(), this.seconds);
        this.buffer = context.createBuffer(1, samples.length, RATE);
        this.buffer.copyToChannel(samples, 0);
      }
      this.start();
    }

    start() {
      const source = context.createBufferSource();
      source.buffer = this.buffer;
      source.connect(volume);
      source.onended = () => {
        if (this.source !== source) return; // it was stopped
        this.pause();
        if (this.onended) this.onended();
      };
      this.source = source;
      this.startedAt = context.currentTime;
      source.start(0, this.at);
    }

    pause() {
      if (!this.source) return;
      this.at = this.currentTime;
      const { source } = this;
      this.source = null;
      source.stop();
    }

    set volume(loudness) {
      if (volume) volume.gain.value = loudness;
    }
  }

  /** The same calls for a sound that was rendered. */
  class FilePlayer {
    constructor(audio) {
      Object.assign(this, { audio, onended: null, onpause: null, onseeked: null });
      audio.addEventListener("ended", () => this.onended && this.onended());
      audio.addEventListener("pause", () => { if (this.onpause && !audio.ended) this.onpause(); });
      audio.addEventListener("seeked", () => this.onseeked && this.onseeked());
    }

    get currentTime() { return this.audio.currentTime; }

    set currentTime(seconds) {
      this.audio.preload = "auto";
      this.audio.currentTime = seconds;
    }

    async play(loudness) {
      this.audio.volume = loudness;
      await this.audio.play();
    }

    pause() { this.audio.pause(); }

    set volume(loudness) { this.audio.volume = loudness; }
  }

  return { NotePlayer, FilePlayer, render };
})();
