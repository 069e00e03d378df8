"""The page's HTML, for Jinja. It is Python since a Flower app's bundle takes no other templates."""

PAGE = """\
{%- macro cell(one) -%}
{%- if one.value is not none -%}
<td class="number"><data value="{{ one.value }}">{{ one.text }}</data></td>
{%- else -%}<td>{{ one.text }}</td>{%- endif -%}
{%- endmacro -%}
{%- macro table(one, picked=false) -%}
<div class="scroll" role="region" aria-label="{{ one.caption }}" tabindex="0">
<table>
<caption>{{ one.caption }}</caption>
<thead><tr>{% for name in one.head %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in one.rows -%}
<tr{% if picked %} data-round="{{ row[0].value }}"{% endif %}>
{%- if row[0].value is not none -%}
<th scope="row"><data value="{{ row[0].value }}">{{ row[0].text }}</data></th>
{%- else -%}<th scope="row">{{ row[0].text }}</th>{%- endif -%}
{%- for one in row[1:] %}{{ cell(one) }}{% endfor -%}
</tr>
{% endfor -%}
</tbody>
</table>
</div>
{%- endmacro -%}
{%- macro picture(one) -%}
<figure class="picture{% if one.is_own %} own{% endif %}">
<img src="{{ one.src }}" alt="{{ one.alt }}" loading="lazy" decoding="async">
<figcaption>{% for line in one.lines %}<span>{{ line }}</span>{% endfor %}</figcaption>
</figure>
{%- endmacro -%}
{%- macro drawing(one) -%}
<figure class="drawing">
<h4>{{ one.title }}</h4>
{{ one.svg | safe }}
<figcaption>{{ one.caption }}</figcaption>
<details><summary>{{ one.title }} in numbers</summary>{{ table(one.table) }}</details>
</figure>
{%- endmacro -%}
{%- macro switched(one) -%}
<figure class="drawing switched">
<fieldset class="axes">
<legend>Over</legend>
{% for axis in one.axes -%}
<input type="radio" name="axis" id="axis-{{ axis.key }}"{% if loop.first %} checked{% endif %}>
<label for="axis-{{ axis.key }}">{{ axis.label }}</label>
{% endfor -%}
<input type="radio" name="axis" id="axis-all">
<label for="axis-all">all three</label>
</fieldset>
<div class="axis-row">
{% for axis in one.axes -%}
<div class="axis axis-{{ axis.key }}">{{ axis.svg | safe }}</div>
{% endfor -%}
</div>
{% if one.rounds | length > 1 -%}
<div class="pick" hidden>
<label for="pick">Round</label>
{% set last = one.rounds | length - 1 -%}
<input type="range" id="pick" min="0" max="{{ last }}" value="{{ last }}" step="1"
 data-rounds="{{ one.rounds | join(' ') }}">
<output for="pick" id="picked"></output>
</div>
{% endif -%}
<figcaption>{{ one.caption }}</figcaption>
<details><summary>{{ one.title }} in numbers</summary>{{ table(one.table, true) }}</details>
</figure>
{%- endmacro -%}
{%- macro block(one) -%}
{% if one.title %}<h3>{{ one.title }}</h3>{% endif %}
{% for note in one.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% if one.tiles -%}
<dl class="tiles">
{% for tile in one.tiles -%}
<div><dt>{{ tile.label }}</dt>
<dd><data data-key="{{ tile.key }}" value="{{ tile.value }}">{{ tile.text }}</data></dd></div>
{% endfor -%}
</dl>
{%- endif %}
{% for some in one.switched %}{{ switched(some) }}{% endfor %}
{% if one.cards -%}
{% set most = one.cards | map(attribute='pictures') | map('length') | max -%}
<ul class="cards{{ ' narrow' if most <= 3 }}">
{% for card in one.cards -%}
<li><h4>{{ card.title }}</h4>
<div class="row">{% for some in card.pictures %}{{ picture(some) }}{% endfor %}</div></li>
{% endfor -%}
</ul>
{%- endif %}
{% for strip in one.strips -%}
<h4>{{ strip.title }}</h4>
<div class="row strip">{% for some in strip.pictures %}{{ picture(some) }}{% endfor %}</div>
{% endfor -%}
{% if one.drawings -%}
<div class="drawings">{% for some in one.drawings %}{{ drawing(some) }}{% endfor %}</div>
{%- endif %}
{% if one.command -%}
<h4>Command that repeats the run</h4>
<pre tabindex="0"><code>{{ one.command }}</code></pre>
{%- endif %}
{% for some in one.tables %}{{ table(some) }}{% endfor %}
{% for some in one.folded if some.rows -%}
<details><summary>{{ some.caption }}</summary>{{ table(some) }}</details>
{% endfor -%}
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src '{{ script_hash }}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the numbers</a>
<header>
<p class="kind">{{ kind }}</p>
<h1>{{ title }}</h1>
<p>{{ lead }}</p>
<nav aria-label="Sections"><ul>
{% for section in sections -%}
<li><a href="#{{ section.key }}">{{ section.short }}</a></li>
{% endfor -%}
</ul></nav>
</header>
<main id="main" tabindex="-1">
{% for section in sections -%}
<section id="{{ section.key }}" aria-labelledby="{{ section.key }}-title">
<h2 id="{{ section.key }}-title">{{ section.title }}</h2>
{% if section.lead %}<p class="lead">{{ section.lead }}</p>{% endif %}
{% set runs = section.blocks | selectattr('title') | list | length -%}
<div class="{{ 'beside' if runs > 1 and section.key not in wide }}">
{% for one in section.blocks -%}
<div class="block{{ ' wide' if not one.title }}">{{ block(one) }}</div>
{% endfor -%}
</div>
</section>
{% endfor -%}
</main>
<footer><p>Written by flwr-quantized-data. The page is one file and loads nothing.</p></footer>
<script>{{ script | safe }}</script>
</body>
</html>
"""
