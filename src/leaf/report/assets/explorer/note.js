"use strict";
// The note on a token: its surprisal, and what each rule credits it with in each completion.
const TokenNote = (() => {
  const { element, number } = leaf;
  const EDGE = 8; // pixels between the note and the window's edge

  function table(token, credit) {
    const { signed } = CreditView;
    const heads = ["LEAF", credit.title, "difference"].map((name) => element("th.number", {}, name));
    const lines = credit.lines(token.stretch, token.j).map(([whose, first, second]) => {
      const cells = [first, second, first - second].map((value) => element("td.number", {}, signed(value)));
      return element(whose === "mean" ? "tr.mean" : "tr", {}, element("th", { scope: "row" }, whose), ...cells);
    });
    return element("table", {}, element("tr", {}, element("th", {}, "advantage"), ...heads), ...lines);
  }

  return class TokenNote {
    constructor() {
      this.element = element("div.tip", { hidden: true, "aria-hidden": "true" }); // the token's label says the same
    }

    // `node` is the token's element under the mouse, of the two that both rules have.
    show(token, credit, node = token?.node) {
      if (!token?.stretch) {
        this.hide();
        return;
      }
      const { stretch, j } = token;
      const nats = stretch.nats[j];
      const what = element("span.dim", {}, ` token ${stretch.start + j}`);
      const probability = number(Math.exp(-nats), 3);
      this.element.replaceChildren(
        element("div.what", {}, element("code", {}, stretch.texts[j] || "▫"), what),
        element("div", {}, `surprisal ${number(nats, 3)} nats, probability ${probability}`),
        table(token, credit),
      );
      this.element.hidden = false;
      this.place(node.getBoundingClientRect());
    }

    // Above the token where there is room, else below; never over the edge.
    place(spot) {
      const size = this.element.getBoundingClientRect();
      const right = document.documentElement.clientWidth - size.width - EDGE;
      const above = spot.top - 10 - size.height;
      const below = Math.max(EDGE, Math.min(spot.bottom + 10, innerHeight - size.height - EDGE));
      this.element.style.left = `${Math.max(EDGE, Math.min(spot.left, right))}px`;
      this.element.style.top = `${above > EDGE ? above : below}px`;
    }

    hide() {
      this.element.hidden = true;
    }
  };
})();
