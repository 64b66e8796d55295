"use strict";
// Leads to the pages that publish and play. This page's own address may fill in the form: ?app=&stream=

const asked = new URLSearchParams(location.search);
const at = (id) => document.getElementById(id);
for (const name of ["app", "stream"]) at(name).value = asked.get(name) ?? "";
for (const page of ["publish", "play"]) {
  at(page).addEventListener("click", () => {
    const query = new URLSearchParams({ app: at("app").value.trim(), stream: at("stream").value.trim() });
    location.assign(`/console/${page}?${query}`);
  });
}
