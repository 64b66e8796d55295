"use strict";
// What publishing (WHIP, RFC 9725) and playing (WHEP) share: an offer goes to an address, an answer comes back, and the
// session lives at the Location until it is deleted.

const asked = new URLSearchParams(location.search);
const at = (id) => document.getElementById(id);
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

at("stream").textContent = asked.get("stream") ?? "";

function say(text, error = false) {
  at("state").textContent = text;
  at("state").className = error ? "error" : "";
}

// What went wrong, in words, and whether it may go right `again` without anybody's doing.
class Trouble extends Error {
  constructor(text, again) {
    super(text);
    this.again = again;
  }
}

class Session {
  // `prepare` adds to the connection what is sent or received.
  static async open(door, prepare) {
    const [app, stream] = [asked.get("app"), asked.get("stream")];
    if (!app || !stream) throw new Trouble("The address of this page must name ?app= and &stream=.", false);
    // What the token was made with goes along: userId, zgVer, zgExpired, zgNonce.
    const query = new URLSearchParams(asked);
    for (const name of ["app", "stream", "token", "auto"]) query.delete(name);
    const session = new Session();
    session.headers = asked.get("token") ? { Authorization: `Bearer ${asked.get("token")}` } : {};
    const pc = (session.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" }));
    try {
      prepare(pc);
      await pc.setLocalDescription(await pc.createOffer());
      await gathered(pc);
      const answer = await fetch(`/${door}/v1/${app}/${stream}?${query}`, {
        method: "POST",
        headers: { ...session.headers, "Content-Type": "application/sdp" },
        body: pc.localDescription.sdp,
      }).catch(() => {
        throw new Trouble("The server does not answer", true);
      });
      const text = await answer.text();
      if (answer.status !== 201) {
        // A stream that is not live may become so, and one that is held by another session, or by one of ours that was
        // lost, may become free.
        const again = answer.status >= 500 || answer.status === 409 || (door === "whep" && answer.status === 404);
        throw new Trouble(text.trim() || `The server answered ${answer.status}`, again);
      }
      session.address = new URL(answer.headers.get("Location"), answer.url);
      await pc.setRemoteDescription({ type: "answer", sdp: text });
      await connected(pc);
      return session;
    } catch (error) {
      session.close();
      throw error;
    }
  }

  // Resolves when the connection is lost. The server's goodbye is told by the transport alone, long before the connection fails.
  lost() {
    const [{ sender, receiver }] = this.pc.getTransceivers();
    const transport = sender.transport ?? receiver.transport;
    return new Promise((done) => {
      const check = () => {
        if (this.pc.connectionState === "failed" || ["closed", "failed"].includes(transport?.state)) done();
      };
      this.pc.addEventListener("connectionstatechange", check);
      transport?.addEventListener("statechange", check);
      check();
    });
  }

  // Bits a second since the last call and what else `type` of the statistics says, of each kind; and how many seconds a question and
  // its answer take.
  async numbers(type) {
    const all = [...(await this.pc.getStats()).values()];
    const pair = all.find((row) => row.type === "candidate-pair" && row.nominated);
    const trip = (pair?.totalRoundTripTime ?? 0) / (pair?.responsesReceived || 1);
    const rows = all.filter((row) => row.type === type);
    const bytes = rows.reduce((sum, row) => sum + (row.bytesSent ?? row.bytesReceived ?? 0), 0);
    const now = performance.now();
    const before = this.before ?? { bytes, now: now - 1000 };
    this.before = { bytes, now };
    const kbits = Math.max(0, Math.round(((bytes - before.bytes) * 8) / (now - before.now)));
    const of = (kind) => rows.find((row) => row.kind === kind);
    return { kbits, trip, video: of("video"), audio: of("audio") };
  }

  // A browser plays as soon as it can, and stands still while a packet that was lost is sent again. Where that happens it is to play
  // so much later that there is time for two tries; half a minute after the last loss no longer.
  steady({ trip, video }) {
    const asked = video?.nackCount ?? 0;
    const was = this.lossy ?? 0;
    this.lossy = asked > (this.asked ?? 0) + 2 ? 30 : Math.max(0, was - 1);
    this.asked = asked;
    if (!was === !this.lossy) return;
    const target = this.lossy ? Math.min(1000, 3000 * trip + 50) : null;
    for (const receiver of this.pc.getReceivers()) receiver.jitterBufferTarget = target;
  }

  close() {
    this.pc.close();
    if (this.address) fetch(this.address, { method: "DELETE", headers: this.headers, keepalive: true }).catch(() => {});
    this.address = null;
  }
}

// All candidates go into the offer, so that none has to follow; a second is enough for those of this machine.
function gathered(pc) {
  const complete = new Promise((done) => {
    const check = () => pc.iceGatheringState === "complete" && done();
    pc.addEventListener("icegatheringstatechange", check);
    check();
  });
  return Promise.race([complete, pause(1000)]);
}

function connected(pc) {
  return new Promise((done, fail) => {
    const check = () => {
      if (pc.connectionState === "connected") done();
      if (pc.connectionState === "failed") fail(new Trouble("No way to the server's media port: is it open for UDP?", true));
    };
    pc.addEventListener("connectionstatechange", check);
    check();
  });
}

// Keeps a session of `door` open until `signal` says stop: opens it, shows its numbers, and opens it again when it is lost.
async function keep(door, prepare, signal) {
  const type = door === "whip" ? "outbound-rtp" : "inbound-rtp";
  const stopped = new Promise((done) => signal.addEventListener("abort", done));
  while (!signal.aborted) {
    let session;
    try {
      say("Connecting …");
      session = await Session.open(door, prepare);
      window.session = session;
      let lost = false;
      session.lost().then(() => (lost = true));
      while (!signal.aborted && !lost) {
        say(door === "whip" ? "Live." : "Playing.");
        const numbers = await session.numbers(type);
        if (door === "whep") session.steady(numbers);
        const { kbits, video } = numbers;
        const pictures = `${video?.frameWidth} × ${video?.frameHeight} · ${video?.framesPerSecond ?? 0} pictures/s`;
        at("numbers").textContent = `${kbits} kbit/s${video?.frameWidth ? ` · ${pictures}` : ""}`;
        await Promise.race([pause(1000), stopped]);
      }
      if (lost) say("The connection was lost; trying again …", true);
    } catch (error) {
      if (!error.again) throw error;
      say(`${error.message}; trying again …`, true);
    } finally {
      session?.close();
      at("numbers").textContent = "";
    }
    await Promise.race([pause(2000), stopped]);
  }
}

// Wires `buttons`, by id, to functions that run until the signal they get is aborted: by Stop or by leaving the page.
function wire(buttons) {
  const stop = at("stop");
  let running = null;
  const begin = (run) => async () => {
    running = new AbortController();
    const all = Object.keys(buttons).map(at);
    all.forEach((button) => (button.disabled = true));
    stop.disabled = false;
    try {
      await run(running.signal);
      say("Stopped.");
    } catch (error) {
      say(error.message, true);
    }
    stop.disabled = true;
    all.forEach((button) => (button.disabled = false));
  };
  for (const [id, run] of Object.entries(buttons)) at(id).onclick = begin(run);
  stop.onclick = () => running.abort();
  addEventListener("pagehide", () => {
    running?.abort();
    window.session?.close();
  });
  // ?auto=camera presses a button at once.
  if (asked.get("auto") in buttons) at(asked.get("auto")).click();
}
