// Plays all videos as one: every clip stops at its end, and when all have ended all start again together.
// Without this script each video plays and loops by itself, with its own controls.
(() => {
  const videos = [...document.querySelectorAll("video")];
  const toolbar = document.querySelector(".controls");
  if (!videos.length) return;
  const toggle = toolbar.querySelector(".toggle");
  let playing = false;

  const show = () => { toggle.textContent = playing ? "Pause" : "Play"; };
  const seek = (time) => videos.forEach((video) => { video.currentTime = Math.min(time, video.duration || time); });
  const pause = () => {
    playing = false;
    videos.forEach((video) => video.pause());
    show();
  };
  const play = () => {
    playing = true;
    show();
    const refused = (error) => { if (error.name === "NotAllowedError") pause(); };
    videos.forEach((video) => video.play().catch(refused));
  };
  const restart = () => { seek(0); play(); };
  const leader = () => videos.reduce((a, b) => ((b.duration || 0) > (a.duration || 0) ? b : a));
  const change = () => {
    if (playing) { pause(); seek(leader().currentTime); }
    else if (leader().ended) restart();
    else { seek(leader().currentTime); play(); }
  };

  for (const video of videos) {
    video.autoplay = video.loop = video.controls = false;
    video.addEventListener("ended", () => {
      if (playing && videos.every((other) => other.ended || other.error)) restart();
    });
    video.addEventListener("click", change);
  }
  toggle.addEventListener("click", change);
  toolbar.querySelector(".restart").addEventListener("click", restart);
  document.addEventListener("visibilitychange", () => { if (playing && !document.hidden) restart(); });
  toolbar.hidden = false;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) pause();
  else restart();
})();
