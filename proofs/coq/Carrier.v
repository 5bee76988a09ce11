(** What a formula computes with. A definition that takes a carrier is one text with two readings: on the reals theorems
    are proved of it, on the rationals it is evaluated and compared with the Python function that runs. *)

Require Import Reals Lra QArith Qreduction List.
Import ListNotations.

Record Carrier := {
  num :> Type;
  of_Z : Z -> num;
  add : num -> num -> num;
  sub : num -> num -> num;
  mul : num -> num -> num;
  div : num -> num -> num;
  leb : num -> num -> bool }.

Arguments of_Z {c}. Arguments add {c}. Arguments sub {c}. Arguments mul {c}. Arguments div {c}. Arguments leb {c}.

Declare Scope carrier_scope.
Delimit Scope carrier_scope with K.
Bind Scope carrier_scope with num.
Infix "+" := add : carrier_scope.
Infix "-" := sub : carrier_scope.
Infix "*" := mul : carrier_scope.
Infix "/" := div : carrier_scope.
Infix "<=?" := leb : carrier_scope.

Definition Rleb (x y : R) : bool := if Rle_dec x y then true else false.

Definition on_R : Carrier :=
  {| num := R; of_Z := IZR; add := Rplus; sub := Rminus; mul := Rmult; div := Rdiv; leb := Rleb |}.

(** Reduced after each operation, so that numbers stay as small as Python's Fraction keeps them. *)
Definition on_Q : Carrier :=
  {| num := Q; of_Z := inject_Z;
     add := fun x y => Qred (x + y); sub := fun x y => Qred (x - y);
     mul := fun x y => Qred (x * y); div := fun x y => Qred (x / y);
     leb := Qle_bool |}.

Section OverCarrier.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition zero : K := of_Z 0.
Definition one : K := of_Z 1.
Definition opp (x : K) : K := zero - x.
Definition ltb (x y : K) : bool := negb (y <=? x).
Definition absolute (x : K) : K := if zero <=? x then x else opp x.
Definition minimum (x y : K) : K := if x <=? y then x else y.
Definition maximum (x y : K) : K := if x <=? y then y else x.

(** The sum of f 0 … f (n - 1). *)
Fixpoint sum (n : nat) (f : nat -> K) : K :=
  match n with O => zero | S m => sum m f + f m end.

(** A list as a function of the place, a list of rows as a matrix, and back. *)
Definition at_place (l : list K) (i : nat) : K := nth i l zero.
Definition at_places (rows : list (list K)) (i j : nat) : K := nth j (nth i rows nil) zero.
Definition vector (n : nat) (x : nat -> K) : list K := map x (seq 0 n).
Definition matrix (n : nat) (m : nat -> nat -> K) : list (list K) := map (fun i => vector n (m i)) (seq 0 n).
End OverCarrier.

(** How results are printed for comparison: numerator and denominator. *)
Definition parts (x : Q) : Z * Z := let r := Qred x in (Qnum r, Zpos (Qden r)).

(** On the reals. *)
Local Open Scope R_scope.

Lemma Rleb_spec (x y : R) : if Rleb x y then x <= y else y < x.
Proof. unfold Rleb. destruct (Rle_dec x y); lra. Qed.

Lemma absolute_Rabs (x : R) : absolute (K := on_R) x = Rabs x.
Proof.
  unfold absolute, opp, zero; simpl. generalize (Rleb_spec 0 x).
  destruct (Rleb 0 x); intro H; [rewrite Rabs_right | rewrite Rabs_left]; lra.
Qed.

Lemma minimum_Rmin (x y : R) : minimum (K := on_R) x y = Rmin x y.
Proof. unfold minimum, Rmin; simpl. unfold Rleb. destruct (Rle_dec x y); reflexivity. Qed.

Lemma maximum_Rmax (x y : R) : maximum (K := on_R) x y = Rmax x y.
Proof. unfold maximum, Rmax; simpl. unfold Rleb. destruct (Rle_dec x y); reflexivity. Qed.

(** Splits every comparison of the goal and of the hypotheses into its two cases, with the inequality each one says. *)
Ltac compare :=
  unfold ltb, negb in *; simpl in *;
  repeat match goal with
  | |- context [Rleb ?x ?y] => generalize (Rleb_spec x y); destruct (Rleb x y); intro
  | H : context [Rleb ?x ?y] |- _ => revert H; generalize (Rleb_spec x y); destruct (Rleb x y); intros ? H
  end.
