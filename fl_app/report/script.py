"""The page's script: the round that is picked is marked in all drawings, and told in words."""

SCRIPT = """\
const pick = document.getElementById("pick");
if (pick) {
  const rounds = pick.dataset.rounds.split(" ");
  const figure = pick.closest("figure");
  const output = document.getElementById("picked");
  const show = () => {
    const round = rounds[pick.value];
    for (const one of figure.querySelectorAll(".picked")) one.classList.remove("picked");
    for (const one of figure.querySelectorAll(".round-" + round)) one.classList.add("picked");
    const heads = [...figure.querySelectorAll("thead th")].map((one) => one.textContent);
    const lines = [];
    for (const row of figure.querySelectorAll("tr[data-round]")) {
      if (row.dataset.round !== round) continue;
      row.classList.add("picked");
      const cells = [...row.children].slice(1).map((cell, n) =>
        heads[n + 1] === "run" ? cell.textContent + ":" : heads[n + 1] + " " + cell.textContent);
      lines.push(cells.join(" · ").replace(": · ", ": "));
    }
    output.textContent = "Round " + round + ": " + lines.join("\\n");
    pick.setAttribute("aria-valuetext", output.textContent);
  };
  pick.addEventListener("input", show);
  figure.addEventListener("click", (event) => {
    const point = event.target.closest('[class^="round-"]');
    if (!point) return;
    pick.value = rounds.indexOf(point.getAttribute("class").split(" ")[0].slice(6));
    show();
  });
  pick.closest(".pick").hidden = false;
  if (matchMedia("(min-width: 62rem)").matches) document.getElementById("axis-all").checked = true;
  show();
}
"""
