"use strict";
(() => {
  const GUTTER = 40; // pixels left of the music, for the names of the octaves
  const FLOOR = 17; // pixels below it, for the seconds
  const N_COLOURS = 10;
  const BANDS = {
    prompt: { fill: "--prompt", line: "--accent" }, copied: { fill: "--copied", line: "--copied-line" },
    match: { fill: "--match", line: "--match-line" }, other: { fill: "--prompt", line: "--soft" },
  };
  const byId = (id) => document.getElementById(id);
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  document.documentElement.classList.add("js");

  // A roll is a piece or a passage below one: what is drawn, heard and pointed at in the same way. Its notes are read
  // from the page when they are first needed.
  function makeRoll(box, data, canvas, player) {
    const roll = {
      box, player, canvas,
      name: data.title, nNotes: data.n_notes, seconds: data.seconds, from: 0, to: data.seconds, pitches: null,
      promptSeconds: data.prompt_seconds, bands: [],
      cursor: canvas.parentElement.querySelector(".cursor"),
      button: box.querySelector(".play"), time: box.querySelector(".time"),
    };
    let parsed = null;
    roll.read = () => (parsed = parsed || JSON.parse(box.querySelector(roll.owner ? ".passage-notes" : ".notes").textContent));
    roll.player = player || new orchestrionSound.NotePlayer(() => roll.read(), roll.seconds);
    return roll;
  }

  const pieces = [...document.querySelectorAll(".piece")].map((article, place) => {
    const data = JSON.parse(article.querySelector(".data").textContent);
    const audio = article.querySelector("audio");
    const player = audio ? new orchestrionSound.FilePlayer(audio) : null;
    // A media element that moves inside the page stops; outside the page it survives every sorting.
    if (audio) { audio.remove(); audio.controls = false; }
    const title = article.querySelector("h2").textContent;
    const piece = makeRoll(article, { ...data, title }, article.querySelector("canvas"), player);
    Object.assign(piece, { place, audio, figures: data.figures, flags: data.flags, text: data.search.toLowerCase() });
    piece.bands = data.marks.map(([name, from, to, kind]) => ({ name, from, to, kind }));
    piece.passages = [...article.querySelectorAll(".passage")].map((box) => makePassage(piece, box));
    return piece;
  });

  function makePassage(piece, box) {
    const data = JSON.parse(box.querySelector(".passage-data").textContent);
    const passage = makeRoll(box, data, box.querySelector("canvas"), null);
    const [from, to] = data.span;
    const isPart = from > 0 || to < data.seconds;
    Object.assign(passage, { owner: piece, kind: data.kind, span: data.span, pieceSpan: data.piece_span });
    if (isPart) passage.bands = [{ name: "match", from, to, kind: "match" }];
    passage.zoomButton = box.querySelector(".zoom");
    passage.zoomButton.hidden = !isPart && !data.piece_span;
    return passage;
  }

  let order = [...pieces];
  let current = null; // where the keys act
  let playing = null; // the one roll that sounds

  // Colours ------------------------------------------------------------------------------------------------------

  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);
  const palette = new Map();
  const drawn = new Set(); // the rolls that have been near the window

  /** A colour of the style sheet as it is now, light or dark. */
  function style(name) {
    if (!palette.has(name)) {
      probe.style.color = `var(${name})`;
      palette.set(name, getComputedStyle(probe).color);
    }
    return palette.get(name);
  }

  function repaint() {
    palette.clear();
    drawn.forEach(draw);
  }

  // Drawing ------------------------------------------------------------------------------------------------------

  const scaleOf = (roll) => (roll.canvas.clientWidth - GUTTER - 6) / (roll.to - roll.from);
  const xOf = (roll, seconds) => GUTTER + scaleOf(roll) * (seconds - roll.from);
  const secondsAt = (roll, x) => Math.max(0, Math.min(roll.seconds, roll.from + (x - GUTTER) / scaleOf(roll)));

  function pitchesOf(roll) {
    const { notes } = roll.read();
    let low = 127;
    let high = 0;
    for (let i = 0; i < notes.pitch.length; i++) {
      if (notes.drum[i] || notes.end[i] < roll.from * 1000 || notes.onset[i] > roll.to * 1000) continue;
      low = Math.min(low, notes.pitch[i]);
      high = Math.max(high, notes.pitch[i]);
    }
    return [low, high];
  }

  /** The stretches that stand out, the prompt first; those of open passages come and go. */
  function bandsOf(roll) {
    const bands = roll.promptSeconds ? [{ name: "prompt", from: 0, to: roll.promptSeconds, kind: "prompt" }] : [];
    bands.push(...roll.bands);
    for (const passage of roll.passages || []) {
      if (!passage.box.open || !passage.pieceSpan || (passage.kind === "prompt" && roll.promptSeconds)) continue;
      const [from, to] = passage.pieceSpan;
      bands.push({ name: passage.kind, from, to, kind: "match" });
    }
    return bands.filter(({ from, to }) => to >= roll.from && from <= roll.to);
  }

  function draw(roll) {
    const { canvas } = roll;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width) return;
    const { notes, pedal } = roll.read();
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const drumKeys = [...new Set(notes.pitch.filter((_, i) => notes.drum[i]))].sort((a, b) => a - b);
    let [low, high] = roll.pitches || pitchesOf(roll);
    const hasPitches = low <= high;
    const floor = height - FLOOR;
    const drumHeight = drumKeys.length ? (hasPitches ? Math.min(44, 6 + 6 * drumKeys.length) : floor - 6) : 0;
    const pedalHeight = pedal.onset.length ? 6 : 0;
    const bottom = floor - drumHeight - (pedalHeight ? pedalHeight + 3 : 0);
    const spare = 1 + Math.max(0, 22 - (high - low)) / 2; // two octaves at least
    low -= spare;
    high += spare;
    const row = (bottom - 4) / (high - low + 1);
    const yOf = (pitch) => 4 + (high - pitch) * row;
    const bands = bandsOf(roll);

    pen.font = "10px system-ui, sans-serif";
    pen.textBaseline = "middle";
    pen.strokeStyle = style("--grid");
    pen.lineWidth = 1;
    for (let pitch = Math.ceil(low / 12) * 12; hasPitches && pitch <= high; pitch += 12) {
      const y = Math.round(yOf(pitch) + row / 2) + 0.5;
      line(pen, GUTTER, y, width, y);
      if (y > bottom - 5) continue; // the label of the lane below stands there
      pen.fillStyle = style("--soft");
      pen.textAlign = "right";
      pen.fillText(`C${pitch / 12 - 1}`, GUTTER - 6, y);
    }
    if (pedalHeight) label(pen, "ped.", bottom + pedalHeight / 2);
    if (drumHeight) label(pen, "drums", floor - drumHeight / 2);
    drawSeconds(pen, roll, width, height);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER - 1, 0, width - GUTTER + 1, height);
    pen.clip();
    for (const band of bands) {
      pen.fillStyle = style(BANDS[band.kind].fill);
      pen.fillRect(xOf(roll, band.from), 0, xOf(roll, band.to) - xOf(roll, band.from), floor);
    }
    drawNotes(pen, roll, drumKeys, { yOf, row, floor, drumHeight });
    pen.globalAlpha = 0.5;
    pen.fillStyle = style("--soft");
    for (let i = 0; i < pedal.onset.length; i++) {
      const x = xOf(roll, pedal.onset[i] / 1000);
      pen.fillRect(x, bottom + 2, Math.max(1, xOf(roll, pedal.end[i] / 1000) - x - 0.5), pedalHeight - 2);
    }
    pen.globalAlpha = 1;
    bands.forEach((band, place) => drawEdges(pen, roll, band, Math.min(place, 3), floor, width));
    pen.restore();
    show(roll);
  }

  function drawSeconds(pen, roll, width, height) {
    const shown = roll.to - roll.from;
    const step = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200].find((s) => shown / s <= width / 70) || 14400;
    pen.textAlign = "center";
    pen.fillStyle = style("--soft");
    pen.strokeStyle = style("--grid");
    for (let second = Math.max(0, Math.ceil(roll.from / step) * step); second <= Math.min(roll.to, roll.seconds); second += step) {
      const x = Math.round(xOf(roll, second)) + 0.5;
      line(pen, x, 0, x, height - FLOOR);
      const text = step < 1 && second % 1 ? `${clock(second)}.5` : clock(second);
      pen.fillText(text, Math.min(x, width - 14), height - FLOOR / 2);
    }
  }

  function drawNotes(pen, roll, drumKeys, { yOf, row, floor, drumHeight }) {
    const { notes } = roll.read();
    const colours = Array.from({ length: N_COLOURS }, (_, i) => style(`--part-${i}`));
    for (let i = 0; i < notes.onset.length; i++) {
      if (notes.end[i] < roll.from * 1000 || notes.onset[i] > roll.to * 1000) continue;
      const x = xOf(roll, notes.onset[i] / 1000);
      pen.globalAlpha = 0.4 + (0.6 * notes.velocity[i]) / 127;
      pen.fillStyle = colours[notes.part[i] % N_COLOURS];
      if (notes.drum[i]) {
        const lane = drumHeight / drumKeys.length;
        pen.fillRect(x, floor - (drumKeys.indexOf(notes.pitch[i]) + 0.88) * lane, 2, lane * 0.76);
      } else {
        const right = xOf(roll, notes.end[i] / 1000);
        pen.fillRect(x, yOf(notes.pitch[i]) + row * 0.06, Math.max(1.5, right - x - 0.3), Math.max(1.5, row * 0.88));
      }
    }
  }

  function drawEdges(pen, roll, band, place, floor, width) {
    const left = Math.round(xOf(roll, band.from)) + 0.5;
    const right = Math.round(xOf(roll, band.to)) + 0.5;
    pen.setLineDash(band.kind === "prompt" ? [4, 3] : []);
    pen.strokeStyle = pen.fillStyle = style(BANDS[band.kind].line);
    if (band.from > 0) line(pen, left, 0, left, floor);
    line(pen, right, 0, right, floor);
    pen.setLineDash([]);
    const room = pen.measureText(band.name).width;
    const x = Math.max(GUTTER + 4, Math.min(left + 4, width - room - 4));
    const y = 8 + 12 * place;
    pen.globalAlpha = 0.8;
    pen.fillStyle = style("--roll");
    pen.fillRect(x - 2, y - 6, room + 4, 12);
    pen.globalAlpha = 1;
    pen.fillStyle = style(BANDS[band.kind].line);
    pen.textAlign = "left";
    pen.fillText(band.name, x, y);
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

  const position = (roll) => roll.player.currentTime;

  function show(roll) {
    const now = Math.min(position(roll), roll.seconds);
    if (roll.started) roll.cursor.style.transform = `translateX(${xOf(roll, now)}px)`; // costs a layout
    roll.cursor.classList.toggle("shown", Boolean(roll.started) && now >= roll.from && now <= roll.to);
    roll.time.textContent = `${clock(now)} / ${clock(roll.seconds)}`;
    roll.canvas.setAttribute("aria-valuenow", now.toFixed(1));
    roll.canvas.setAttribute("aria-valuetext", `${clock(now)} of ${clock(roll.seconds)}`);
  }

  function follow() {
    if (!playing) return;
    show(playing);
    requestAnimationFrame(follow);
  }

  function mark(roll, isPlaying) {
    roll.box.classList.toggle("playing", isPlaying);
    roll.button.setAttribute("aria-label", `${isPlaying ? "Pause" : "Play"} ${roll.name}`);
  }

  function pause() {
    if (!playing) return;
    const roll = playing;
    playing = null;
    roll.player.pause();
    mark(roll, false);
    show(roll);
  }

  async function play(roll) {
    if (roll.button.disabled || playing === roll) return;
    pause();
    select(roll.owner || roll);
    playing = roll;
    roll.started = true;
    mark(roll, true);
    follow();
    try {
      await roll.player.play(Number(byId("volume").value));
      if (playing !== roll) roll.player.pause(); // paused before the first sound
    } catch (error) {
      // AbortError only says that a pause came before the first sound.
      if (error.name !== "AbortError" && playing === roll) {
        pause();
        roll.time.textContent = `cannot play: ${error.message}`;
      }
    }
  }

  const toggle = (roll) => (playing === roll ? pause() : play(roll));

  function seek(roll, seconds) {
    if (roll.button.disabled) return;
    roll.player.currentTime = Math.max(0, Math.min(seconds, roll.seconds));
    roll.started = true;
    show(roll);
  }

  function playNext(roll) {
    const shown = visible();
    const next = shown.slice(shown.indexOf(roll) + 1).find((other) => !other.button.disabled);
    pause();
    seek(roll, 0);
    if (roll.owner || !byId("chain").checked || !next) return;
    seek(next, 0);
    play(next);
    next.box.scrollIntoView({ block: "nearest" });
  }

  // Comparing ----------------------------------------------------------------------------------------------------

  /** Show the same number of seconds and the same pitches in both rolls, with the matches below each other; or all. */
  function zoom(passage, isZoomed) {
    const piece = passage.owner;
    for (const other of piece.passages) {
      other.zoomButton.setAttribute("aria-pressed", String(isZoomed && other === passage));
      Object.assign(other, { from: 0, to: other.seconds, pitches: null });
    }
    Object.assign(piece, { from: 0, to: piece.seconds, pitches: null });
    if (isZoomed) {
      const spans = [[passage, passage.span], [piece, passage.pieceSpan]].filter(([, span]) => span);
      const longest = Math.max(1, ...spans.map(([, [from, to]]) => to - from));
      for (const [roll, [from]] of spans) Object.assign(roll, { from: from - longest / 4, to: from + longest * 1.25 });
      const ranges = spans.map(([roll]) => pitchesOf(roll));
      const pitches = [Math.min(...ranges.map(([low]) => low)), Math.max(...ranges.map(([, high]) => high))];
      for (const [roll] of spans) roll.pitches = pitches;
    }
    for (const roll of [piece, ...piece.passages]) if (drawn.has(roll)) draw(roll);
  }

  const openPassage = (piece) => piece.passages.find((passage) => passage.box.open);
  const isZoomed = (passage) => passage.zoomButton.getAttribute("aria-pressed") === "true";

  function hearMatch(piece) {
    const passage = openPassage(piece) || piece.passages[0];
    if (!passage) return;
    passage.box.open = true;
    const isPiecesTurn = playing === passage && passage.pieceSpan;
    const [roll, [from]] = isPiecesTurn ? [piece, passage.pieceSpan] : [passage, passage.span];
    pause();
    seek(roll, from);
    play(roll);
  }

  // Order and focus ----------------------------------------------------------------------------------------------

  const visible = () => order.filter((piece) => !piece.box.hidden);

  function select(piece) {
    if (current) current.box.classList.remove("current");
    current = piece;
    piece.box.classList.add("current");
  }

  function go(piece) {
    if (!piece) return;
    select(piece);
    piece.box.focus({ preventScroll: true });
    piece.box.scrollIntoView({ block: "nearest" });
  }

  function neighbour(step) {
    const shown = visible();
    const here = shown.indexOf(current);
    return here < 0 ? shown[0] : shown[here + step];
  }

  /** Whether a piece passes the words, the flags and the range of a figure. */
  function passes(piece, words) {
    const flag = byId("flag").value;
    const figure = byId("figure").value;
    const [low, high] = ["figure-min", "figure-max"].map((id) => byId(id).valueAsNumber); // NaN: no bound
    const value = piece.figures[figure];
    return words.every((word) => piece.text.includes(word))
      && (flag === "" || (flag.startsWith("flag:") ? piece.flags.includes(flag.slice(5)) : (flag === "some") === piece.flags.length > 0))
      && (figure === "" || (Number.isNaN(low) && Number.isNaN(high))
        || (typeof value === "number" && !(value < low) && !(value > high)));
  }

  function arrange() {
    const key = byId("sort").value;
    const isDescending = byId("direction").getAttribute("aria-pressed") === "true";
    const isFigure = key !== "" && key !== "name";
    const compare = (a, b) => {
      if (key === "name") return a.name.localeCompare(b.name, "en", { numeric: true });
      return isFigure ? a.figures[key] - b.figures[key] : a.place - b.place;
    };
    const lacks = (piece) => isFigure && typeof piece.figures[key] !== "number";
    order = [...pieces].sort((a, b) => lacks(a) - lacks(b)
      || (lacks(a) ? 0 : compare(a, b) * (isDescending ? -1 : 1)) || a.place - b.place);
    const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const piece of order) {
      piece.box.hidden = !passes(piece, words);
      let sorted = null;
      for (const box of piece.box.querySelectorAll(".statistics > div")) {
        box.classList.toggle("sorted", box.dataset.key === key);
        if (box.dataset.key === key) sorted = box;
      }
      piece.sortValue.textContent = sorted ? `${sorted.firstChild.textContent}: ${sorted.lastChild.textContent}` : "";
    }
    const isMoved = order.some((piece, place) => byId("pieces").children[place] !== piece.box);
    if (isMoved) byId("pieces").append(...order.map((piece) => piece.box));
    const n = visible().length;
    byId("nothing").hidden = n > 0 || pieces.length === 0;
    byId("count").textContent = n === pieces.length
      ? `${n} ${n === 1 ? "piece" : "pieces"}` : `${n} of ${pieces.length} pieces`;
  }

  // Wiring -------------------------------------------------------------------------------------------------------

  function wire(roll) {
    const { canvas, player } = roll;
    roll.button.disabled = !roll.audio && roll.nNotes === 0;
    roll.button.addEventListener("click", () => toggle(roll));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      seek(roll, secondsAt(roll, event.offsetX));
      if (event.pointerType !== "touch") canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) seek(roll, secondsAt(roll, event.offsetX));
    });
    player.onpause = () => { if (playing === roll) pause(); };
    player.onseeked = () => show(roll);
    player.onended = () => { if (playing === roll) playNext(roll); };
  }

  for (const piece of pieces) {
    piece.sortValue = piece.time.parentElement.insertBefore(document.createElement("span"), piece.time);
    piece.sortValue.className = "sort-value";
    piece.box.addEventListener("focusin", () => select(piece));
    for (const link of piece.box.querySelectorAll("a[data-of]")) {
      link.href = (link.dataset.of === "audio" ? piece.audio : piece.box.querySelector(".still")).src;
    }
    wire(piece);
    for (const passage of piece.passages) {
      wire(passage);
      passage.zoomButton.addEventListener("click", () => zoom(passage, !isZoomed(passage)));
      passage.box.addEventListener("toggle", () => {
        if (!passage.box.open && playing === passage) pause();
        if (!passage.box.open && isZoomed(passage)) zoom(passage, false);
        else if (drawn.has(piece)) draw(piece);
      });
    }
  }

  byId("bar").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["filter", "figure-min", "figure-max"]) byId(id).addEventListener("input", arrange);
  for (const id of ["sort", "flag"]) byId(id).addEventListener("change", arrange);
  byId("figure").addEventListener("change", () => {
    for (const id of ["figure-min", "figure-max"]) {
      byId(id).disabled = byId("figure").value === "";
      byId(id).value = "";
    }
    arrange();
  });
  byId("flag-box").hidden = pieces.every((piece) => piece.flags.length === 0);
  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const names = ["system", "light", "dark"];
    const name = names[(names.indexOf(root.dataset.theme || "system") + 1) % names.length];
    if (name === "system") delete root.dataset.theme; else root.dataset.theme = name;
    byId("theme").firstElementChild.textContent = name;
    repaint();
  });
  byId("direction").addEventListener("click", () => {
    const isDescending = byId("direction").getAttribute("aria-pressed") !== "true";
    byId("direction").setAttribute("aria-pressed", String(isDescending));
    byId("direction").firstElementChild.textContent = isDescending ? "↓" : "↑";
    arrange();
  });
  byId("volume").addEventListener("input", () => { if (playing) playing.player.volume = Number(byId("volume").value); });
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
    const passages = piece ? piece.passages : [];
    // A passage that has the focus or sounds is what space and arrows are about.
    const roll = passages.find((passage) => passage.box.contains(target) || passage === playing) || piece;
    const actions = {
      " ": () => roll && toggle(roll),
      j: () => go(neighbour(1)), ArrowDown: () => go(neighbour(1)),
      k: () => go(neighbour(-1)), ArrowUp: () => go(neighbour(-1)),
      n: () => { const next = neighbour(1); if (next) { go(next); play(next); } },
      ArrowLeft: () => roll && seek(roll, position(roll) - 5),
      ArrowRight: () => roll && seek(roll, position(roll) + 5),
      Home: () => (onRoll ? seek(roll, 0) : go(visible()[0])),
      End: () => (onRoll ? seek(roll, roll.seconds) : go(visible().at(-1))),
      c: () => { const isOpen = passages.some((p) => p.box.open); for (const p of passages) p.box.open = !isOpen; },
      z: () => { const passage = passages.length && openPassage(piece); if (passage && !passage.zoomButton.hidden) zoom(passage, !isZoomed(passage)); },
      v: () => piece && hearMatch(piece),
      s: () => byId("sort").focus(),
      "/": () => byId("filter").focus(),
      "?": () => byId("help").showModal(),
    };
    if (!Object.hasOwn(actions, key)) return;
    event.preventDefault();
    actions[key]();
  });

  // A sandboxed frame has an origin of its own; so has a file opened from disk, but that one may download.
  byId("no-downloads").hidden = !(window.origin === "null" && location.protocol !== "file:" && window !== window.top);

  const rolls = new Map(pieces.flatMap((piece) => [piece, ...piece.passages]).map((roll) => [roll.canvas, roll]));
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const roll = rolls.get(target);
      if (isIntersecting && !drawn.has(roll)) { drawn.add(roll); draw(roll); }
    }
  }, { rootMargin: "400px" });
  const sized = new ResizeObserver((entries) => {
    for (const { target } of entries) if (drawn.has(rolls.get(target))) draw(rolls.get(target));
  });
  for (const [canvas, roll] of rolls) { seen.observe(canvas); sized.observe(canvas); show(roll); }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  arrange();
})();
