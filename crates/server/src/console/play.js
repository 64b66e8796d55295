"use strict";

async function play(signal) {
  const video = at("video");
  try {
    await keep("whep", receive, signal);
  } finally {
    video.srcObject = null;
  }
}

function receive(pc) {
  const video = at("video");
  const media = new MediaStream();
  pc.addTransceiver("video", { direction: "recvonly" });
  pc.addTransceiver("audio", { direction: "recvonly" });
  pc.addEventListener("track", ({ track }) => {
    media.addTrack(track);
    if (video.srcObject === media) return;
    video.srcObject = media;
    video.play().catch(() => {
      // Sound has to be asked for with a click.
      video.muted = true;
      video.play().catch(() => {});
    });
  });
}

wire({ play });
