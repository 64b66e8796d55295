"use strict";

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };

async function camera() {
  // One of the two may be missing.
  for (const wanted of [{ video: CAMERA, audio: true }, { video: CAMERA }, { audio: true }]) {
    try {
      return await navigator.mediaDevices.getUserMedia(wanted);
    } catch (error) {
      if (error.name !== "NotFoundError") throw error;
    }
  }
  throw new Trouble("There is neither a camera nor a microphone.", false);
}

const display = () => navigator.mediaDevices.getDisplayMedia({ video: true, audio: true });

const publish = (capture) => async (signal) => {
  if (!navigator.mediaDevices) {
    throw new Trouble("Browsers give camera and screen to pages from localhost or over https only.", false);
  }
  say("Asking for camera, microphone or screen …");
  const media = await capture().catch((error) => {
    throw error.name === "NotAllowedError" ? new Trouble("The browser was not allowed to use them.", false) : error;
  });
  at("video").srcObject = media;
  const stop = at("stop");
  // "Stop sharing" in the browser's own bar.
  media.getVideoTracks()[0]?.addEventListener("ended", () => stop.click());
  try {
    await keep("whip", (pc) => send(pc, media), signal);
  } finally {
    media.getTracks().forEach((track) => track.stop());
    at("video").srcObject = null;
  }
};

function send(pc, media) {
  for (const track of media.getTracks()) {
    const transceiver = pc.addTransceiver(track, { direction: "sendonly", streams: [media] });
    const codecs = RTCRtpSender.getCapabilities?.(track.kind)?.codecs;
    if (track.kind !== "video" || !codecs || !transceiver.setCodecPreferences) continue;
    // Every CDN takes H.264; the rest stays on offer behind it.
    const first = (codec) => (codec.mimeType.toLowerCase() === "video/h264" ? 0 : 1);
    transceiver.setCodecPreferences([...codecs].sort((a, b) => first(a) - first(b)));
  }
}

wire({ camera: publish(camera), screen: publish(display) });
