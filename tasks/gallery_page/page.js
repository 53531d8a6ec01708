"use strict";
(() => {
  const GUTTER = 40; // pixels left of the music, for the names of the octaves
  const FLOOR = 17; // pixels below it, for the seconds
  const N_COLOURS = 10;
  const byId = (id) => document.getElementById(id);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  document.documentElement.classList.add("js");

  const pieces = [...document.querySelectorAll(".piece")].map((article, place) => {
    const data = JSON.parse(article.querySelector(".data").textContent);
    const audio = article.querySelector("audio");
    const piece = {
      article, place, audio,
      name: article.querySelector("h2").textContent,
      seconds: data.seconds, notes: data.notes, pedal: data.pedal,
      statistics: data.statistics, promptSeconds: data.prompt_seconds,
      canvas: article.querySelector("canvas"), cursor: article.querySelector(".cursor"),
      button: article.querySelector(".play"), time: article.querySelector(".time"),
      text: data.search.toLowerCase(),
    };
    // A media element that moves inside the page stops; outside the page it survives every sorting.
    if (audio) { audio.remove(); audio.controls = false; }
    return piece;
  });
  let order = [...pieces];
  let current = null; // where the keys act
  let playing = null; // the one piece that sounds

  // Drawing ------------------------------------------------------------------------------------------------------

  const xOf = (piece, seconds) => GUTTER + (piece.canvas.clientWidth - GUTTER - 6) * Math.min(seconds / piece.seconds, 1);
  const secondsAt = (piece, x) =>
    Math.max(0, Math.min(1, (x - GUTTER) / (piece.canvas.clientWidth - GUTTER - 6))) * piece.seconds;

  function draw(piece) {
    const { canvas, notes } = piece;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const colours = Array.from({ length: N_COLOURS }, (_, i) => style(`--part-${i}`));
    const drumKeys = [...new Set(notes.pitch.filter((_, i) => notes.drum[i]))].sort((a, b) => a - b);
    const pitches = notes.pitch.filter((_, i) => !notes.drum[i]);
    const floor = height - FLOOR;
    const drumHeight = drumKeys.length ? (pitches.length ? Math.min(44, 6 + 6 * drumKeys.length) : floor - 6) : 0;
    const pedalHeight = piece.pedal.onset.length ? 6 : 0;
    const bottom = floor - drumHeight - (pedalHeight ? pedalHeight + 3 : 0);
    let low = pitches.reduce((a, b) => Math.min(a, b), 127) - 1;
    let high = pitches.reduce((a, b) => Math.max(a, b), 0) + 1;
    const spare = Math.max(0, 24 - (high - low)) / 2; // two octaves at least
    low -= spare;
    high += spare;
    const row = (bottom - 4) / (high - low + 1);
    const yOf = (pitch) => 4 + (high - pitch) * row;

    pen.font = "10px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.fillStyle = style("--prompt");
    if (piece.promptSeconds) pen.fillRect(GUTTER, 0, xOf(piece, piece.promptSeconds) - GUTTER, floor);
    pen.strokeStyle = style("--grid");
    pen.lineWidth = 1;
    for (let pitch = Math.ceil(low / 12) * 12; pitches.length && pitch <= high; pitch += 12) {
      const y = Math.round(yOf(pitch) + row / 2) + 0.5;
      line(pen, GUTTER, y, width, y);
      if (y > bottom - 5) continue; // the label of the lane below stands there
      pen.fillStyle = style("--soft");
      pen.textAlign = "right";
      pen.fillText(`C${pitch / 12 - 1}`, GUTTER - 6, y);
    }
    const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200].find((s) => piece.seconds / s <= width / 70) || 14400;
    pen.textAlign = "center";
    pen.fillStyle = style("--soft");
    for (let second = 0; second <= piece.seconds; second += step) {
      const x = Math.round(xOf(piece, second)) + 0.5;
      line(pen, x, 0, x, floor);
      pen.fillText(clock(second), Math.min(x, width - 14), height - FLOOR / 2);
    }
    for (let i = 0; i < notes.onset.length; i++) {
      const x = xOf(piece, notes.onset[i] / 1000);
      pen.globalAlpha = 0.4 + (0.6 * notes.velocity[i]) / 127;
      pen.fillStyle = colours[notes.part[i] % N_COLOURS];
      if (notes.drum[i]) {
        const lane = drumHeight / drumKeys.length;
        pen.fillRect(x, floor - (drumKeys.indexOf(notes.pitch[i]) + 0.88) * lane, 2, lane * 0.76);
      } else {
        const right = xOf(piece, notes.end[i] / 1000);
        pen.fillRect(x, yOf(notes.pitch[i]) + row * 0.06, Math.max(1.5, right - x - 0.3), Math.max(1.5, row * 0.88));
      }
    }
    pen.globalAlpha = 0.5;
    pen.fillStyle = style("--soft");
    for (let i = 0; i < piece.pedal.onset.length; i++) {
      const x = xOf(piece, piece.pedal.onset[i] / 1000);
      pen.fillRect(x, bottom + 2, Math.max(1, xOf(piece, piece.pedal.end[i] / 1000) - x - 0.5), pedalHeight - 2);
    }
    if (pedalHeight) label(pen, "ped.", bottom + pedalHeight / 2);
    if (drumHeight) label(pen, "drums", floor - drumHeight / 2);
    if (piece.promptSeconds) {
      const x = Math.round(xOf(piece, piece.promptSeconds)) + 0.5;
      pen.globalAlpha = 1;
      pen.setLineDash([4, 3]);
      pen.strokeStyle = pen.fillStyle = style("--accent");
      line(pen, x, 0, x, floor);
      pen.textAlign = x > 80 ? "right" : "left";
      pen.fillText("prompt", x + (x > 80 ? -4 : 4), 8);
    }
    show(piece);
  }

  function line(pen, x0, y0, x1, y1) {
    pen.beginPath();
    pen.moveTo(x0, y0);
    pen.lineTo(x1, y1);
    pen.stroke();
  }

  function label(pen, text, y) {
    pen.globalAlpha = 1;
    pen.fillStyle = style("--soft");
    pen.textAlign = "right";
    pen.fillText(text, GUTTER - 5, y);
  }

  // Playing ------------------------------------------------------------------------------------------------------

  const position = (piece) => (piece.audio ? piece.audio.currentTime : 0);

  function show(piece) {
    const now = Math.min(position(piece), piece.seconds);
    piece.cursor.style.transform = `translateX(${xOf(piece, now)}px)`;
    piece.time.textContent = `${clock(now)} / ${clock(piece.seconds)}`;
    piece.canvas.setAttribute("aria-valuenow", now.toFixed(1));
    piece.canvas.setAttribute("aria-valuetext", `${clock(now)} of ${clock(piece.seconds)}`);
  }

  function follow() {
    if (!playing) return;
    show(playing);
    requestAnimationFrame(follow);
  }

  function mark(piece, isPlaying) {
    piece.article.classList.toggle("playing", isPlaying);
    piece.button.setAttribute("aria-label", `${isPlaying ? "Pause" : "Play"} ${piece.name}`);
  }

  function pause() {
    if (!playing) return;
    const piece = playing;
    playing = null;
    piece.audio.pause();
    mark(piece, false);
    show(piece);
  }

  async function play(piece) {
    if (!piece.audio || playing === piece) return;
    pause();
    select(piece);
    playing = piece;
    piece.article.classList.add("started");
    piece.audio.volume = Number(byId("volume").value);
    mark(piece, true);
    follow();
    try {
      await piece.audio.play();
    } catch (error) {
      // AbortError only says that a pause came before the first sound.
      if (error.name !== "AbortError" && playing === piece) {
        pause();
        piece.time.textContent = `cannot play: ${error.message}`;
      }
    }
  }

  const toggle = (piece) => (playing === piece ? pause() : play(piece));

  function seek(piece, seconds) {
    if (!piece.audio) return;
    piece.audio.preload = "auto";
    piece.audio.currentTime = Math.max(0, Math.min(seconds, piece.seconds));
    piece.article.classList.add("started");
    show(piece);
  }

  // Order and focus ----------------------------------------------------------------------------------------------

  const visible = () => order.filter((piece) => !piece.article.hidden);

  function select(piece) {
    if (current) current.article.classList.remove("current");
    current = piece;
    piece.article.classList.add("current");
  }

  function go(piece) {
    if (!piece) return;
    select(piece);
    piece.article.focus({ preventScroll: true });
    piece.article.scrollIntoView({ block: "nearest" });
  }

  function neighbour(step) {
    const shown = visible();
    const here = shown.indexOf(current);
    return here < 0 ? shown[0] : shown[here + step];
  }

  function arrange() {
    const key = byId("sort").value;
    const isDescending = byId("direction").getAttribute("aria-pressed") === "true";
    const statistic = key.startsWith("stat:") ? key.slice(5) : null;
    const compare = (a, b) => {
      if (key === "name") return a.name.localeCompare(b.name, "en", { numeric: true });
      if (statistic === null) return a.place - b.place;
      return a.statistics[statistic] - b.statistics[statistic];
    };
    const lacks = (piece) => statistic !== null && typeof piece.statistics[statistic] !== "number";
    order = [...pieces].sort((a, b) => lacks(a) - lacks(b)
      || (lacks(a) ? 0 : compare(a, b) * (isDescending ? -1 : 1)) || a.place - b.place);
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const piece of order) {
      piece.article.hidden = !words.every((word) => piece.text.includes(word));
      byId("pieces").append(piece.article);
      for (const box of piece.article.querySelectorAll(".statistics > div")) {
        box.classList.toggle("sorted", box.dataset.key === statistic);
      }
    }
    const n = visible().length;
    byId("nothing").hidden = n > 0 || pieces.length === 0;
    byId("count").textContent = n === pieces.length
      ? `${n} ${n === 1 ? "piece" : "pieces"}` : `${n} of ${pieces.length} pieces`;
  }

  // Wiring -------------------------------------------------------------------------------------------------------

  for (const piece of pieces) {
    piece.button.disabled = !piece.audio;
    piece.button.addEventListener("click", () => toggle(piece));
    piece.article.addEventListener("focusin", () => select(piece));
    piece.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      seek(piece, secondsAt(piece, event.offsetX));
      if (event.pointerType !== "touch") piece.canvas.setPointerCapture(event.pointerId);
    });
    piece.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) seek(piece, secondsAt(piece, event.offsetX));
    });
    const links = piece.article.querySelectorAll("a[data-of]");
    for (const link of links) link.href = (link.dataset.of === "audio" ? piece.audio : piece.article.querySelector(".still")).src;
    if (piece.audio) {
      piece.audio.addEventListener("pause", () => { if (playing === piece && !piece.audio.ended) pause(); });
      piece.audio.addEventListener("seeked", () => show(piece));
      piece.audio.addEventListener("ended", () => {
        if (playing !== piece) return;
        const shown = visible();
        const next = shown.slice(shown.indexOf(piece) + 1).find((other) => other.audio);
        pause();
        seek(piece, 0);
        if (byId("chain").checked && next) {
          seek(next, 0);
          play(next);
          next.article.scrollIntoView({ block: "nearest" });
        }
      });
    }
  }

  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  byId("filter").addEventListener("input", arrange);
  byId("sort").addEventListener("change", arrange);
  byId("direction").addEventListener("click", () => {
    const isDescending = byId("direction").getAttribute("aria-pressed") !== "true";
    byId("direction").setAttribute("aria-pressed", String(isDescending));
    byId("direction").firstElementChild.textContent = isDescending ? "↓" : "↑";
    arrange();
  });
  byId("volume").addEventListener("input", () => { if (playing) playing.audio.volume = Number(byId("volume").value); });
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("help-close").addEventListener("click", () => byId("help").close());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const { target, key } = event;
    if (target.id === "filter" && key === "Escape") {
      target.value = "";
      arrange();
      target.blur();
      return;
    }
    const isControl = target.closest("input, select, textarea, button, a, summary") !== null;
    const isTyping = target.closest("input, select, textarea") !== null;
    if (isTyping || (isControl && (key === " " || key === "Enter"))) return;
    if (key.length === 1 && key !== " " && !byId("keys-on").checked) return;
    const onRoll = target.tagName === "CANVAS";
    const piece = current || visible()[0];
    const end = piece ? piece.seconds : 0;
    const actions = {
      " ": () => piece && toggle(piece),
      j: () => go(neighbour(1)), ArrowDown: () => go(neighbour(1)),
      k: () => go(neighbour(-1)), ArrowUp: () => go(neighbour(-1)),
      n: () => { const next = neighbour(1); if (next) { go(next); play(next); } },
      ArrowLeft: () => piece && seek(piece, position(piece) - 5),
      ArrowRight: () => piece && seek(piece, position(piece) + 5),
      Home: () => (onRoll ? seek(piece, 0) : go(visible()[0])),
      End: () => (onRoll ? seek(piece, end) : go(visible().at(-1))),
      "/": () => byId("filter").focus(),
      "?": () => byId("help").showModal(),
    };
    if (!Object.hasOwn(actions, key)) return;
    event.preventDefault();
    actions[key]();
  });

  // A sandboxed frame has an origin of its own; so has a file opened from disk, but that one may download.
  byId("no-downloads").hidden = !(window.origin === "null" && location.protocol !== "file:" && window !== window.top);

  const drawn = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const piece = pieces.find((candidate) => candidate.canvas === target);
      if (isIntersecting && !drawn.has(piece)) { drawn.add(piece); draw(piece); }
    }
  }, { rootMargin: "400px" });
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const piece = pieces.find((candidate) => candidate.canvas === target);
      if (drawn.has(piece)) draw(piece);
    }
  });
  for (const piece of pieces) { seen.observe(piece.canvas); sized.observe(piece.canvas); show(piece); }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach(draw));
  arrange();
})();
