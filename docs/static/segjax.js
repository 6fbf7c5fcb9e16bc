// A click on a picture opens it at its full size. A button on each block of code copies it; of a doctest it copies the
// statements without their prompts and output.
addEventListener("DOMContentLoaded", () => {
  for (const image of document.querySelectorAll("article img")) {
    image.addEventListener("click", () => open(image.src));
  }
  for (const block of document.querySelectorAll("article div.highlight")) {
    const button = document.createElement("button");
    button.className = "copy";
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      let text = block.querySelector("pre").textContent;
      if (text.startsWith(">>> ")) {
        const lines = text.split("\n").filter((line) => /^(>>>|\.\.\.)( |$)/.test(line));
        text = lines.map((line) => line.slice(4)).join("\n") + "\n";
      }
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }
});
