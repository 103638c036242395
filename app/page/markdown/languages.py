"""What the highlighter knows of each language: comments, strings, keywords. Short on purpose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Language:
    """The syntax of one language. `line_comments` are regular expressions, everything else is plain text. The first of
    `names` is the language's own, the others are aliases and close relatives."""

    names: tuple[str, ...]
    keywords: frozenset[str]
    line_comments: tuple[str, ...] = ()
    block_comments: tuple[tuple[str, str], ...] = ()
    quotes: tuple[str, ...] = ('"', "'")
    long_quotes: tuple[str, ...] = ()
    ignores_case: bool = False
    word_begins: str = "A-Za-z_"
    word_holds: str = ""


def language_of(name: str) -> Language | None:
    """The language that a fence names in lower case, None if it is unknown."""
    return _BY_NAME.get(name)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SLASHES = ("//",)
_STARS = (("/*", "*/"),)
_HASH = (r"(?<!\S)\#",)
_C = (
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "return short signed sizeof static struct switch typedef union unsigned void volatile while bool true false NULL "
)
_JAVA = (
    "abstract assert boolean break byte case catch char class const continue default do double else enum extends final "
    "finally float for if implements import instanceof int interface long native new null package private protected "
    "public record return sealed short static super switch synchronized this throw throws true false try var void "
    "volatile while yield "
)
_JAVASCRIPT = (
    "as async await break case catch class const continue debugger default delete do else export extends false finally "
    "for from function get if import in instanceof let new null of return set static super switch this throw true try "
    "typeof undefined var void while with yield "
)
_TYPESCRIPT = "abstract any boolean declare enum implements interface keyof namespace never number private protected \
public readonly string type unknown "
_SQL = (
    "add all alter and as asc begin between by case cast check column commit constraint create cross database "
    "default delete desc distinct drop else end exists foreign from full group having if in index inner insert "
    "int integer into is join key left like limit not null offset on or order outer over partition primary "
    "references right rollback select set table text then top transaction trigger union unique update values "
    "varchar view when where with "
)
_SHELL = (
    "alias break case cd continue do done echo elif else esac eval exec exit export fi for function if in local read "
    "return set shift source sudo then trap unset until while "
)

LANGUAGES = (
    Language(
        ("python", "py", "python3", "pycon", "ipython"),
        _words(
            "False None True and as assert async await break case class continue def del elif else except finally for "
            "from global if import in is lambda match nonlocal not or pass raise return self try while with yield"
        ),
        (r"\#",),
        long_quotes=('"""', "'''"),
    ),
    Language(("c", "h"), _words(_C), _SLASHES, _STARS),
    Language(
        ("cpp", "c++", "cc", "cxx", "hpp", "cuda", "cu", "arduino"),
        _words(
            _C + "alignas catch class concept consteval constexpr const_cast co_await co_return co_yield decltype "
            "delete dynamic_cast explicit export final friend mutable namespace new noexcept nullptr operator override "
            "private protected public reinterpret_cast requires static_cast template this throw try typename using "
            "virtual"
        ),
        _SLASHES,
        _STARS,
    ),
    Language(
        ("csharp", "cs", "c#"),
        _words(
            _JAVA
            + "as async await base bool checked decimal delegate dynamic event foreach get in internal is \
lock nameof namespace object out override params readonly ref set string struct typeof using virtual where"
        ),
        _SLASHES,
        _STARS,
    ),
    Language(("java", "groovy"), _words(_JAVA), _SLASHES, _STARS),
    Language(
        ("kotlin", "kt", "scala"),
        _words(
            _JAVA
            + "companion data def fun given in init inline internal is lateinit match object open override \
trait type val when where with"
        ),
        _SLASHES,
        _STARS,
        long_quotes=('"""',),
    ),
    Language(("javascript", "js", "jsx", "mjs", "node"), _words(_JAVASCRIPT), _SLASHES, _STARS, ('"', "'", "`")),
    Language(("typescript", "ts", "tsx"), _words(_JAVASCRIPT + _TYPESCRIPT), _SLASHES, _STARS, ('"', "'", "`")),
    Language(("json", "json5", "jsonc", "jsonl"), _words("true false null"), _SLASHES, _STARS),
    Language(
        ("go", "golang"),
        _words(
            "any bool break byte case chan const continue default defer else error fallthrough false float64 for func "
            "go goto if import int int64 interface map nil package range return rune select string struct switch true "
            "type uint var"
        ),
        _SLASHES,
        _STARS,
        ('"', "'", "`"),
    ),
    Language(
        ("rust", "rs"),
        _words(
            "as async await bool break char const continue crate dyn else enum extern f32 f64 false fn for i32 i64 if "
            "impl in let loop match mod move mut pub ref return self Self static str struct super trait true type u32 "
            "u64 u8 unsafe use usize where while"
        ),
        _SLASHES,
        _STARS,
        ('"',),
    ),
    Language(
        ("swift",),
        _words(
            "actor as async await break case catch class continue default defer do else enum extension false for func "
            "guard if import in init inout is let nil private protocol public return self static struct super switch "
            "throw throws true try typealias var where while"
        ),
        _SLASHES,
        _STARS,
        ('"',),
        ('"""',),
    ),
    Language(
        ("dart", "zig", "v"),
        _words(_JAVA + _JAVASCRIPT + "comptime defer dynamic fn late library mixin mut part pub required String usize"),
        _SLASHES,
        _STARS,
    ),
    Language(
        ("php",),
        _words(
            "abstract and array as break case catch class clone const continue declare default do echo else elseif "
            "empty extends false final finally fn for foreach function global if implements include instanceof "
            "interface isset list match namespace new null or php print private protected public readonly require "
            "require_once return static switch this throw trait true try unset use var while"
        ),
        ("//", r"\#"),
        _STARS,
        word_begins="A-Za-z_$",
    ),
    Language(
        ("ruby", "rb", "crystal", "elixir", "ex", "exs"),
        _words(
            "alias and begin break case class def defmodule defp do else elsif end ensure false fn for if in module "
            "next nil not or private puts raise redo require rescue retry return self super then true undef unless "
            "until use when while with yield"
        ),
        _HASH,
        word_begins="A-Za-z_@",
    ),
    Language(
        ("perl", "pl", "r", "julia", "jl"),
        _words(
            "begin break catch const continue do else elseif elsif end export FALSE for foreach function global if "
            "import in last let library local macro module my NA next NULL our package print repeat return sub struct "
            "TRUE true try unless until use using while"
        ),
        _HASH,
        word_begins="A-Za-z_$@",
    ),
    Language(
        ("bash", "sh", "shell", "zsh", "fish", "console", "shell-session", "terminal"),
        _words(_SHELL),
        _HASH,
        word_begins="A-Za-z_$",
        word_holds="-",
    ),
    Language(
        ("powershell", "ps1", "pwsh"),
        _words(
            "begin break catch class continue do else elseif end exit filter finally for foreach function if in param "
            "process return switch throw trap try until using while"
        ),
        (r"\#",),
        (("<#", "#>"),),
        ignores_case=True,
        word_begins="A-Za-z_$",
        word_holds="-",
    ),
    Language(
        ("sql", "postgresql", "postgres", "mysql", "sqlite", "plsql", "tsql"),
        _words(_SQL),
        ("--",),
        _STARS,
        ignores_case=True,
    ),
    Language(
        ("lua",),
        _words(
            "and break do else elseif end false for function goto if in local nil not or repeat return then true until "
            "while"
        ),
        ("--",),
    ),
    Language(
        ("haskell", "hs", "elm", "ocaml", "ml", "fsharp", "fs"),
        _words(
            "and begin case class data deriving do done else end exception for fun function if import in infix "
            "instance let match module mutable newtype of open rec then to try type val where while with"
        ),
        ("--",),
        (("{-", "-}"), ("(*", "*)")),
        ('"',),
        word_holds="'",
    ),
    Language(
        ("html", "xml", "svg", "vue", "svelte", "xhtml"),
        frozenset(),
        block_comments=(("<!--", "-->"),),
        quotes=('"',),
        word_begins="A-Za-z_",
        word_holds="-:",
    ),
    Language(
        ("css", "scss", "sass", "less"),
        _words(
            "@charset @extend @font-face @import @include @keyframes @layer @media @mixin @supports @use !important"
        ),
        (),
        _STARS,
        word_begins="A-Za-z_@!",
        word_holds="-",
    ),
    Language(
        ("yaml", "yml", "toml", "ini", "cfg", "conf", "properties", "dotenv", "env"),
        _words("true false null yes no on off"),
        (r"(?<!\S)[\#;]",),
        ignores_case=True,
        word_holds="-",
    ),
    Language(
        ("dockerfile", "docker", "makefile", "make", "cmake", "nginx", "terraform", "hcl", "nix"),
        _words(
            "ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN SHELL STOPSIGNAL USER VOLUME WORKDIR AS "
            "data define else endif export if ifdef ifeq ifndef in include inherit let listen location module output "
            "provider proxy_pass resource rec server then true false upstream variable with"
        ),
        _HASH,
    ),
    Language(
        ("clojure", "clj", "lisp", "scheme", "elisp", "racket"),
        _words(
            "begin cond def defmacro defn defun define do else fn if lambda let loop nil ns progn quote recur require "
            "set! true false when"
        ),
        (";",),
        quotes=('"',),
        word_holds="!?*+<>=-",
    ),
    Language(
        ("latex", "tex", "matlab", "octave", "erlang"),
        _words("break case catch else elseif end for function global if otherwise persistent return switch try while"),
        ("%",),
        quotes=('"',),
        word_begins=r"A-Za-z_\\",
    ),
    Language(("diff", "patch"), frozenset(), (r"(?m:^@@)",), quotes=()),
)
_BY_NAME = {name: language for language in LANGUAGES for name in language.names}
