/* Prepares one page of the built book for paper and returns its article as HTML. Evaluated in the opened page.

prefix: makes the page's ids unique in the whole book. pages: {address: prefix} of all pages. Formulae are still TeX
then: they are typeset once, in the whole book. */
([prefix, pages]) => {
  const article = document.querySelector("article.bd-article");
  const drop = (selector) => article.querySelectorAll(selector).forEach((el) => el.remove());

  // Controls do nothing on paper. A calculator keeps its first values, its results and its drawing.
  article.querySelectorAll(".calculator select").forEach((el) => {
    const chosen = document.createElement("output");
    chosen.textContent = el.selectedOptions[0]?.textContent || "";
    el.replaceWith(chosen);
  });
  drop("script, button, input, .headerlink, .animation-pause, .calculator-without, .calculator-actions");

  // Code that the page folds away is left out.
  drop("details.hide.above-input, details.hide.below-input");
  article.querySelectorAll("details").forEach((el) => (el.open = true));

  article.querySelectorAll("pre").forEach((el) => el.classList.toggle("long", el.textContent.split("\n").length > 40));

  // Each tab's label stands above its content.
  article.querySelectorAll(".sd-tab-label").forEach((el) => {
    const heading = document.createElement("p");
    heading.className = "tab-heading";
    heading.textContent = el.textContent;
    el.replaceWith(heading);
  });

  // Solutions go to the end of the book.
  const solutions = [...article.querySelectorAll("div.solution")].map((el) => {
    const link = document.createElement("p");
    link.innerHTML = `<a href="#${el.id}">Solution at the end of the book</a>`;
    el.replaceWith(link);
    el.classList.remove("dropdown", "toggle", "toggle-hidden");
    el.querySelectorAll(".toggle-hidden").forEach((part) => part.classList.remove("toggle-hidden"));
    return el;
  });

  const rename = (root) => {
    for (const el of [root, ...root.querySelectorAll("*")]) {
      for (const { name, value } of [...el.attributes]) {
        if (name === "id" || name === "for") el.setAttribute(name, `${prefix}--${value}`);
        else if (value.includes("url(#"))
          el.setAttribute(name, value.replaceAll(/url\((["']?)#/g, `url($1#${prefix}--`));
        else if (name === "href" || name === "xlink:href") {
          const to = new URL(value, document.baseURI), target = pages[to.origin + to.pathname] || pages[to.href.split("#")[0]];
          if (target) el.setAttribute(name, "#" + (to.hash ? `${target}--${to.hash.slice(1)}` : target));
        } else if (name === "src") el.setAttribute(name, new URL(value, document.baseURI).href);
      }
    }
  };
  rename(article);
  article.id = prefix;
  solutions.forEach(rename);
  const title = article.querySelector("h1")?.textContent.trim() || "";
  return { id: prefix, title, article: article.outerHTML, solutions: solutions.map((el) => el.outerHTML) };
}
