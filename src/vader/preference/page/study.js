// One rater's way through a study. State is what was answered and where the rater is; every change is kept in the
// browser and, where there is a server, sent. The order of pairs and sides is drawn from the rater's own random number.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $$ = (id) => document.getElementById(id);
  const CHOICES = ["left", "tie", "right"];
  const LABELS = { left: "A", tie: "No difference", right: "B" };
  const KEYS = { 1: 0, 2: 1, 3: 2, ArrowLeft: 0, ArrowDown: 1, ArrowRight: 2 };
  const place = `vader-study-${data.study}`;

  // ---- what is remembered

  const random = (bytes) => [...crypto.getRandomValues(new Uint8Array(bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
  const trouble = (text) => { $$("trouble").textContent = text; $$("trouble").hidden = !text; };
  const fresh = () => ({ rater: random(16), name: "", at: -1, answers: {}, unsent: [] });
  const recalled = () => {
    try { return { ...fresh(), ...JSON.parse(localStorage.getItem(place) || "{}") }; } catch { return fresh(); }
  };
  const keep = () => {
    try { localStorage.setItem(place, JSON.stringify(state)); } catch {
      trouble("This browser keeps nothing for this page: please answer in one go, and do not reload.");
    }
  };
  const state = recalled();

  // ---- the rater's own order

  const numbers = (text) => { // FNV-1a for the seed, mulberry32 for the numbers in [0, 1)
    let seed = 2166136261;
    for (const letter of text) seed = Math.imul(seed ^ letter.codePointAt(0), 16777619);
    return () => {
      seed = (seed + 0x6d2b79f5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  };
  const shuffled = (items, next) => {
    const found = [...items];
    for (let i = found.length - 1; i > 0; i -= 1) {
      const j = Math.floor(next() * (i + 1));
      [found[i], found[j]] = [found[j], found[i]];
    }
    return found;
  };
  const next = numbers(data.study + state.rater);
  const items = shuffled(data.blocks, next)
    .flatMap((block) => shuffled(block, next))
    .map((item) => ({ ...item, videos: shuffled(item.videos, next) }));

  // ---- answers

  const given = (item) => state.answers[item.id] || {};
  const open = (item) => item.asked.find((question) => !given(item)[question]);
  const rows = (item) => Object.entries(given(item)).map(([question, { choice, seconds }]) => (
    { item: item.id, question, choice, left: item.videos[0], seconds }
  ));
  const sheet = (answers) => ({ study: data.study, rater: state.rater, name: state.name, answers });
  const answer = (item, question, choice) => {
    state.answers[item.id] = { ...given(item), [question]: { choice, seconds: Math.round((performance.now() - shown) / 100) / 10 } };
    if (data.send && !state.unsent.includes(item.id)) state.unsent.push(item.id);
    current = open(item) || "";
    keep();
    mark();
  };

  // ---- sending: what the server has not acknowledged is sent again, until it has

  let sending = false;
  const send = async () => {
    if (!data.send || sending || !state.unsent.length) return;
    sending = true;
    const ids = state.unsent.slice(0, 50);
    const before = JSON.stringify(ids.map((id) => state.answers[id]));
    try {
      const answers = items.filter((item) => ids.includes(item.id)).flatMap(rows);
      const reply = await fetch(data.send, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(sheet(answers)) });
      if (!reply.ok) throw new Error(String(reply.status));
      if (JSON.stringify(ids.map((id) => state.answers[id])) === before) state.unsent = state.unsent.filter((id) => !ids.includes(id));
      trouble("");
      keep();
    } catch {
      trouble("Your last answers could not be sent yet. They are kept here and will be sent again.");
    }
    sending = false;
    thank();
  };
  setInterval(send, 3000);
  addEventListener("online", send);

  // ---- the two videos: each stops at its end, and when both have ended both start again

  const videos = [...document.querySelectorAll(".two video")];
  const play = () => videos.forEach((video) => video.play().catch(() => {}));
  const restart = () => { videos.forEach((video) => { video.currentTime = 0; }); play(); };
  for (const video of videos) {
    video.addEventListener("ended", () => { if (videos.every((other) => other.ended || other.error)) restart(); });
    video.addEventListener("canplaythrough", () => { if (videos.every((other) => other.readyState > 3 && other.paused && !other.ended)) restart(); });
    video.addEventListener("loadedmetadata", () => {
      const two = document.querySelector(".two");
      two.classList.toggle("wide", video.videoWidth > 1.5 * video.videoHeight);
      two.style.setProperty("--ratio", video.videoWidth / video.videoHeight); // the next pair's place until it is there
      video.style.imageRendering = video.videoWidth < 200 ? "pixelated" : "";
    });
    video.addEventListener("click", restart);
    video.addEventListener("error", () => { if (video.getAttribute("src")) trouble("A video of this pair cannot be shown. Please tell whoever asked you, and go on with the next."); });
  }
  document.addEventListener("visibilitychange", () => { if (!document.hidden && !$$("pair").hidden) restart(); });

  // ---- what is shown

  let current = ""; // the question that keys answer
  let shown = 0; // when the pair came up

  const show = (name) => ["welcome", "pair", "done"].forEach((id) => { $$(id).hidden = id !== name; });
  const element = (tag, className, text) => Object.assign(document.createElement(tag), { className, textContent: text || "" });

  const question = (item, name) => {
    const field = element("fieldset", "question");
    field.dataset.question = name;
    const answers = element("div", "answers");
    field.append(element("legend", "", data.questions[name]), answers);
    CHOICES.forEach((choice) => {
      const button = element("button", "", LABELS[choice]);
      button.type = "button";
      button.dataset.choice = choice;
      button.addEventListener("click", () => answer(item, name, choice));
      answers.append(button);
    });
    return field;
  };

  const mark = () => {
    const item = items[state.at];
    for (const field of $$("questions").children) {
      const found = given(item)[field.dataset.question];
      field.classList.toggle("current", field.dataset.question === current);
      field.querySelectorAll("button").forEach((button) => button.setAttribute("aria-pressed", String(!!found && found.choice === button.dataset.choice)));
    }
    $$("next").disabled = !!open(item);
    $$("back").disabled = state.at === 0;
    $$("bar").value = items.filter((one) => !open(one)).length / items.length;
    $$("place").textContent = `${state.at + 1} of ${items.length}`;
  };

  const showPair = () => {
    const item = items[state.at];
    show("pair");
    $$("prompt").textContent = item.prompt;
    $$("questions").replaceChildren(...item.asked.map((name) => question(item, name)));
    videos.forEach((video, i) => { video.src = data.videos[item.videos[i]]; });
    current = open(item) || "";
    shown = performance.now();
    mark();
    scrollTo(0, 0);
  };

  const thank = () => {
    if ($$("done").hidden) return;
    const left = state.unsent.length;
    $$("thanks").textContent = !data.send ? "All pairs are answered. Please download your answers and send the file to whoever asked you."
      : left ? "All pairs are answered. Please keep this page open: your last answers are still being sent." : "All pairs are answered, and your answers have arrived. You can close this page.";
    $$("download").hidden = !!data.send && !left;
  };

  const go = (at) => {
    state.at = Math.max(0, Math.min(at, items.length));
    keep();
    send();
    if (state.at < items.length) { showPair(); return; }
    videos.forEach((video) => video.pause());
    show("done");
    thank();
  };

  // ---- what the rater does

  const backOne = () => { // to the answer before, on this pair or the last one
    const item = items[state.at];
    const answered = item.asked.filter((name) => given(item)[name]);
    const i = current ? item.asked.indexOf(current) - 1 : answered.length - 1;
    if (i >= 0) { current = item.asked[i]; mark(); } else if (state.at > 0) go(state.at - 1);
  };
  const forward = () => { if (!open(items[state.at])) go(state.at + 1); };

  document.addEventListener("keydown", (event) => {
    if ($$("pair").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const item = items[state.at];
    if (event.key in KEYS) {
      const name = current;
      if (name) answer(item, name, CHOICES[KEYS[event.key]]);
    } else if (event.key === "ArrowUp" || event.key === "Backspace") backOne();
    else if (event.key === "Enter" && !["back", "next"].includes(document.activeElement.id) && !open(item)) forward();
    else return;
    event.preventDefault();
  });
  $$("start").addEventListener("submit", (event) => {
    event.preventDefault();
    state.name = $$("name").value.trim();
    go(0);
  });
  $$("next").addEventListener("click", forward);
  $$("back").addEventListener("click", () => go(state.at - 1));
  $$("review").addEventListener("click", () => go(items.length - 1));
  $$("download").addEventListener("click", () => {
    const file = new Blob([JSON.stringify(sheet(items.flatMap(rows)), null, 1)], { type: "application/json" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: `answers-${state.rater.slice(0, 8)}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  $$("count").textContent = items.length === 1 ? "one pair" : `${items.length} pairs`;
  if (state.at < 0) { show("welcome"); keep(); } else go(state.at);
})();
