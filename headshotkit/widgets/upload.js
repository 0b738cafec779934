// The button that sends photos to the notebook's kernel, a piece at a time; the next piece waits for the kernel's answer.
// Jupyter drops a message above 10 MB without a word, so no message holds more than one piece.

/** Return what a loop sends with: a message goes out, its answer comes back; after a silence the kernel is asked again. */
function line_to_kernel(model, id, goes_on) {
  let number = 0;
  let waiting = null;
  const hear = (answer) => {
    if (answer.id === id && waiting && answer.n >= waiting.n) waiting.answered(answer);
  };
  const send = (message, pieces) => {
    number += 1;
    model.send({ ...message, id, n: number }, undefined, pieces);
    return number;
  };
  const ask = (message, pieces = []) =>
    new Promise((resolve) => {
      const again = setInterval(() => {
        if (goes_on()) send({ what: "where", file: message.file ?? 0 }, []);
        else answered({ failed: "Stopped." });
      }, model.get("patience_ms"));
      const answered = (answer) => {
        clearInterval(again);
        waiting = null;
        resolve(answer);
      };
      waiting = { n: number + 1, answered };
      send(message, pieces);
    });
  model.on("msg:custom", hear);
  return { ask, close: () => model.off("msg:custom", hear) };
}

function render({ model, el }) {
  const button = document.createElement("button");
  const chooser = document.createElement("input");
  const bar = document.createElement("progress");
  const words = document.createElement("div");
  button.textContent = "Add photos";
  button.className = "jupyter-button widget-button jupyter-widgets";
  button.style.width = "auto";
  chooser.type = "file";
  chooser.multiple = true;
  chooser.accept = "image/*,.heic,.heif,.avif";
  chooser.hidden = true;
  chooser.className = "headshotkit-chooser";
  bar.hidden = true;
  bar.style.margin = "0 8px";
  words.className = "headshotkit-said";
  words.setAttribute("role", "status");
  el.replaceChildren(button, chooser, bar, words);

  const say = (more = "") => {
    words.textContent = [model.get("said"), more].filter(Boolean).join(" ");
  };
  const said = () => say();
  model.on("change:said", said);
  say();

  let current = null;

  async function send_all(files) {
    const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2)}`;
    current = id;
    button.disabled = true;
    bar.hidden = false;
    bar.max = Math.max(1, files.reduce((sum, file) => sum + file.size, 0));
    bar.value = 0;
    const kernel = line_to_kernel(model, id, () => {
      if (current !== id) return false;
      button.disabled = false;
      say("The notebook is not responding: a cell is running, or the connection was lost. The upload resumes by itself.");
      return true;
    });
    try {
      let sent = 0;
      const sizes = files.map((file) => ({ name: file.name, bytes: file.size }));
      let answer = await kernel.ask({ what: "chosen", files: sizes });
      for (const [number, file] of files.entries()) {
        let at = 0;
        do {
          if (current !== id || answer.failed) break;
          let message = { what: "piece", file: number, at };
          let pieces = [];
          try {
            pieces = [await file.slice(at, at + model.get("piece_bytes")).arrayBuffer()];
          } catch (error) {
            message = { what: "lost", file: number, why: String(error.message ?? error) };
          }
          answer = await kernel.ask(message, pieces);
          if (current === id) say();
          at = answer.next;
          bar.value = sent + at;
        } while (at < file.size);
        sent += file.size;
      }
      if (answer.failed && current === id) say(answer.failed);
    } finally {
      kernel.close();
      if (current === id) {
        button.disabled = false;
        bar.hidden = true;
        chooser.value = "";
      }
    }
  }

  button.addEventListener("click", () => chooser.click());
  chooser.addEventListener("change", () => {
    if (chooser.files.length) send_all([...chooser.files]);
  });
  return () => {
    current = null;
    model.off("change:said", said);
  };
}

export default { render };
